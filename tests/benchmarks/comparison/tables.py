def write_tables(out, results):
    pass
