"""What the registry and the node search of ComfyUI are told about the pack."""

import json
import subprocess

import pytest
from comfy_server import host_checkout, host_python

pytestmark = pytest.mark.slow


def test_the_host_reads_the_metadata_of_the_installed_pack(base_directory):
    pack = base_directory / "custom_nodes" / "seqlora"
    script = f"""
from comfy_config import config_parser
config = config_parser.extract_node_configuration({str(pack)!r})
print(config.model_dump_json())
"""
    done = subprocess.run(
        [host_python(), "-c", script], cwd=host_checkout(), capture_output=True, text=True, check=True
    )
    config = json.loads(done.stdout.splitlines()[-1])
    assert config["tool_comfy"]["publisher_id"]
    assert config["tool_comfy"]["display_name"] == "SeqLoRA"
    assert config["project"]["name"] == "seqlora"
    assert config["project"]["license"] == {"file": "LICENSE", "text": ""}
    version = (host_checkout() / "comfyui_version.py").read_text().rpartition('"')[0].rpartition('"')[2]
    oldest = config["project"]["supported_comfyui_version"].removeprefix(">=")
    assert tuple(map(int, oldest.split("."))) <= tuple(map(int, version.split(".")))


def test_the_archive_holds_the_pack_and_its_help_but_no_tests(base_directory):
    pack = base_directory / "custom_nodes" / "seqlora"
    assert {path.name for path in pack.iterdir()} >= {
        "__init__.py",
        "nodes",
        "seqlora_core",
        "web",
        "locales",
        "LICENSE",
    }
    assert len(list((pack / "web" / "js").glob("*.js"))) > 5
    assert not [path for path in pack.rglob("*") if path.name in ("tests", ".ci", ".git", "__pycache__")]


def test_every_node_is_found_under_other_words_where_the_host_knows_them(host):
    nodes = [info for name, info in host.request("/object_info").items() if name.startswith("SeqLoRA")]
    assert nodes
    for info in nodes:
        assert info.get("search_aliases", ["a host without them"])
