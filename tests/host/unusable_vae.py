"""A custom node for the tests: a VAE that fails, to see what happens before anything is encoded."""


class UnusableVae:
    INPUT_TYPES = classmethod(lambda cls: {"required": {}})
    RETURN_TYPES = ("VAE",)
    FUNCTION = "make"
    CATEGORY = "tests"

    def make(self):
        return (self,)

    def encode(self, pixels):
        raise RuntimeError("a picture was encoded")


NODE_CLASS_MAPPINGS = {"TestsUnusableVae": UnusableVae}
