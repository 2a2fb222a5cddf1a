"""A YAML from strangers: what is refused before anything of it is executed."""

import pydoc

import pytest
from hyperpyyaml import load_hyperpyyaml

from emoq_modules.errors import UnsafeYAMLError
from emoq_modules.inference import safe_yaml
from emoq_modules.inference.safe_yaml import check_yaml

GOOD = """
labels: &words [angry, happy]
temperature: 1.5
note: (two words)
prompt: !new:emoq_modules.PromptTemplate
    system: "{labels}!"
    user: "{text}"
again: *words
pretrained_path: .
where: !ref <pretrained_path>/adapter/adapter_model.safetensors
"""
SYSTEM = "!!python/object/apply:os.system ['touch {mark}']"
# Each would leave a file behind; {mark} stands for its path.
HOSTILE = {
    "function": "a: !apply:os.system ['touch {mark}']",
    "function of an allowed package": (
        "a: !apply:speechbrain.utils.superpowers.run_shell ['touch {mark}']"
    ),
    "class": "a: !new:subprocess.Popen [[touch, '{mark}']]",
    "name": "a: !name:os.system ['touch {mark}']",
    "module": "a: !module:antigravity",
    "python/object/apply": f"a: {SYSTEM}",
    "python/object/new": (
        "a: !!python/object/new:os.system {{args: ['touch {mark}']}}"
    ),
    "python/name": "a: !!python/name:os.system",
    "verbatim tag": (
        "a: !<tag:yaml.org,2002:python/object/apply:os.system> ['touch {mark}']"
    ),
    "applyref": "a: !applyref:os.system ['touch {mark}']",
    "include": "a: !include:/etc/hostname",
    "renamed tag": "%TAG !x! !apply:os.\n---\na: !x!system ['touch {mark}']",
    "tuple": f"a: ({SYSTEM})",
    "tuple in quotes": f'a: "({SYSTEM})"',
    "tuple over two lines": f"a: ({SYSTEM})".replace(" [", "\n  ["),
    "tuple made of pieces": (
        "head: '(!!python/object/apply:os.sys'\n"
        "b: !ref <head>tem ['touch {mark}'])"
    ),
    "tuple as a key": f"({SYSTEM}): 1",
    "attribute": "a: [1]\nb: !ref <a.__class__>",
    "attribute in a string": "a: [1]\nb: <a.__class__>\nc: !ref <b>",
    "deep inside": "a: [{{b: [!apply:os.system ['touch {mark}']]}}]",
    "standard tag that is none of ours": "a: !!binary aGVsbG8=",
}


def test_what_our_own_files_need_is_let_through():
    check_yaml(GOOD)
    assert load_hyperpyyaml(GOOD)["note"] == ("two words",)


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_yaml_is_refused_and_nothing_is_executed(kind, tmp_path):
    mark = tmp_path / "executed"
    text = f"labels: [a]\n{HOSTILE[kind].format(mark=mark)}\n"
    if kind == "renamed tag":  # a directive comes first
        text = HOSTILE[kind].format(mark=mark)
    with pytest.raises(UnsafeYAMLError, match="trust_source=True"):
        check_yaml(text)
    assert not mark.exists()


@pytest.mark.parametrize("kind", ["function", "tuple", "applyref"])
def test_the_same_yaml_is_executed_where_nothing_is_checked(kind, tmp_path):
    mark = tmp_path / "executed"
    load_hyperpyyaml(HOSTILE[kind].format(mark=mark))
    assert mark.exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 9\nb: !ref <a>**<a>**<a>", "a power in line 2"),
        ("a: 9\nb: <a> ** <a>**<a>\nc: !ref <b>", "a power in line 2"),
        (
            "a: &a0 [1]\n"
            + "".join(
                f"k{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n"
                for n in range(1, 9)
            ),
            "aliases that multiply, in line 5",
        ),
    ],
)
def test_what_would_take_hours_to_read_is_refused(text, message):
    with pytest.raises(UnsafeYAMLError, match=message):
        check_yaml(text)


def test_message_names_the_code_and_the_line():
    with pytest.raises(UnsafeYAMLError) as caught:
        check_yaml("a: 1\nb: !apply:os.system [ls]", origin="x/model.yaml")
    message = str(caught.value)
    assert "x/model.yaml names code" in message
    assert "!apply:os.system in line 2" in message


def test_overrides_are_read_too():
    text = "head: x\nb: !ref <head>tem [1])"
    check_yaml(text)
    with pytest.raises(UnsafeYAMLError, match="tuple"):
        check_yaml(text, {"head": "(!!python/object/apply:os.sys"})


def test_the_allowed_names_exist():
    for name in safe_yaml._NAMES:
        assert pydoc.locate(name.split(":")[1]) is not None, name
