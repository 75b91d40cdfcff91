"""The settings of convserve serve: flag before environment before file before default, and how they are shown."""

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest

from convserve.cli.main import main
from convserve.errors import InputError, SettingError
from convserve.server.limits import RANGES, Limits
from convserve.server.options import OPTIONS, document, resolve

# for each setting two values that are allowed, as a flag has them, and one that is not
VALUES = {
    "host": ("0.0.0.0", "::1", ""),
    "port": ("0", "65535", "65536"),
    "traces": ("console", "http://localhost:4318", "localhost:4318"),
    "http_port": ("8501", "0", "65536"),
    "repository": ("models", "/srv/m", ""),
    "poll": ("0.5", "10", "0"),
    "warm_up": ("0", "true", "perhaps"),
    "tls_cert": ("cert.pem", "/c", ""),
    "tls_key": ("key.pem", "/k", ""),
    "tls_client_ca": ("ca.pem", "/a", ""),
    "tokens": ("tokens.toml", "/t", ""),
    "log_format": ("json", "text", "xml"),
    "log_calls": ("1", "off", "some"),
    "max_message": ("1MiB", "4096", "12"),
    "max_image": ("1GiB", "4096", "many"),
    "workers": ("1", "256", "1000000"),
    "max_running": ("1", "256", "0"),
    "max_waiting": ("0", "9", "-1"),
    "stall_timeout": ("0.5", "3", "nan"),
    "max_batch": ("1", "32", "1.5"),
    "max_delay": ("0", "0.25", "inf"),
    "grace": ("0", "5", "-1"),
    "threads": ("1", "2", "257"),
    "memory_budget": ("64MiB", "123456789", "1MiB"),
    "run_memory_budget": ("64MiB", "123456789", "0"),
    "fit": ("pad", "crop", "round"),
    "cache": ("off", "1", "2"),
    "evict_weights": ("on", "0", "yes please"),
}


def of_file(folder: Path, text: str) -> str:
    path = folder / "serve.toml"
    path.write_text(text)
    return str(path)


def test_every_setting_is_tried() -> None:
    assert set(VALUES) == set(OPTIONS)


@pytest.mark.parametrize("name", OPTIONS)
def test_flag_before_environment_before_file_before_default(tmp_path: Path, name: str) -> None:
    option = OPTIONS[name]
    first, second, _ = VALUES[name]
    file = of_file(tmp_path, f"{name} = {json.dumps(first)}\n")
    environ = {option.variable: second}
    flags = {name: option.parse(first)}
    expected = [option.parse(first), option.parse(second), option.parse(first), option.default]
    for given, value, source in zip(
        ((flags, environ, file), ({name: None}, environ, file), ({}, {}, file), ({}, {}, None)),
        expected,
        (option.flag, option.variable, file, "default"),
        strict=True,
    ):
        found = resolve(given[0], environ=given[1], file=given[2])[name]
        assert (found.value, found.source) == (value, source)


@pytest.mark.parametrize("name", OPTIONS)
def test_a_wrong_value_is_named_wherever_it_stands(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    option, wrong = OPTIONS[name], VALUES[name][2] or "\0"
    with pytest.raises(SettingError, match=f"{option.variable} is .*; allowed: "):
        resolve({}, environ={option.variable: wrong})
    file = of_file(tmp_path, f"{name} = {json.dumps(wrong)}\n")
    with pytest.raises(InputError, match=f"serve.toml': {name} is .*; allowed: "):
        resolve({}, environ={}, file=file)
    with pytest.raises(InputError, match=f"{name} is .*; allowed: "):
        resolve({}, environ={}, file=of_file(tmp_path, f"{name} = [1, 2]\n"))
    if option.metavar:
        with pytest.raises(SystemExit) as ended:
            main(["serve", option.flag, wrong])
        assert ended.value.code == 2
        assert f"argument {option.flag}: {wrong!r}; allowed: " in capsys.readouterr().err


def test_defaults_are_allowed_and_those_of_the_limits() -> None:
    for option in OPTIONS.values():
        if option.default is not None:
            assert option.parse(option.default) == option.default
    limits, names = Limits(), {"message_bytes": "max_message", "image_bytes": "max_image"}
    names |= {"stall_s": "stall_timeout", "max_delay_s": "max_delay"}
    for name in RANGES:
        assert getattr(limits, name) == OPTIONS[names.get(name, name)].default


def test_what_is_printed_is_a_configuration_with_the_same_values(tmp_path: Path) -> None:
    given = {name: option.parse(VALUES[name][0]) for name, option in OPTIONS.items()}
    settings = resolve(given, environ={})
    printed = document(settings)
    again = resolve({}, environ={}, file=of_file(tmp_path, printed))
    assert {name: one.value for name, one in again.items()} == given
    assert all(f"# {OPTIONS[name].help}\n{name} = " in printed for name in OPTIONS)
    unset = document(resolve({}, environ={}))
    assert tomllib.loads(unset) == {
        name: "64MiB" if name == "max_message" else "256MiB" if name == "max_image" else option.default
        for name, option in OPTIONS.items()
        if option.default is not None
    }


def test_print_config_of_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONVSERVE_SERVE_CONFIG", of_file(tmp_path, 'port = 9\nmax_image = "1GiB"\n'))
    monkeypatch.setenv("CONVSERVE_SERVE_MAX_RUNNING", "3")
    assert main(["serve", "--print-config", "--json", "--port", "7", "--no-cache"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert found["port"] == {"value": 7, "source": "--port"}
    assert found["cache"] == {"value": False, "source": "--cache"}
    assert found["max_running"] == {"value": 3, "source": "CONVSERVE_SERVE_MAX_RUNNING"}
    assert found["max_image"]["value"] == 1 << 30
    assert main(["serve", "--print-config"]) == 0
    assert 'max_image = "1GiB"  # ' in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("prot = 8500", "has the key 'prot', which is none; did you mean 'port'?"),
        ("[server]\nport = 8500", "has the key 'server', which is none"),
        ("port = ", "is no TOML"),
        (None, "cannot be read"),
    ],
)
def test_wrong_files(tmp_path: Path, text: str | None, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(tmp_path) if text is None else of_file(tmp_path, text)
    assert main(["serve", "--config", file]) == 1
    assert said in capsys.readouterr().err


def test_a_variable_that_is_none_is_told() -> None:
    with pytest.raises(SettingError, match="PROT, which is no setting; did you mean 'CONVSERVE_SERVE_PORT'"):
        resolve({}, environ={"CONVSERVE_SERVE_PROT": "1"})


def test_polling_needs_a_repository(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--poll", "1"]) == 1
    assert "--poll looks at a repository" in capsys.readouterr().err


@pytest.mark.parametrize("given", [["--tls-cert", "a"], ["--tls-key", "a"], ["--tls-client-ca", "a"]])
def test_tls_takes_a_certificate_and_its_key(given: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", *given]) == 1
    assert "TLS takes --tls-cert and --tls-key together" in capsys.readouterr().err


def test_the_documentation_has_every_setting() -> None:
    text = (Path(__file__).parents[1] / "docs" / "serving.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    begin = next(number for number, line in enumerate(rows) if line.startswith("| `host`"))
    assert rows[begin : begin + len(OPTIONS)] == [
        "| `{}` | `{}` | {} |".format(one.name, one.default_text, one.help.replace("|", "\\|"))
        for one in OPTIONS.values()
    ]


def test_help_has_every_flag_in_a_group(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["serve", "--help"])
    told = capsys.readouterr().out
    assert "usage: convserve serve [OPTION ...] [NET ...]\n" in told
    assert told.index("\nmodels:") < told.index("--repository") < told.index("\nwhat it takes:")
    assert all(f"  {option.flag}" in told for option in OPTIONS.values())


@pytest.mark.parametrize(
    ("net", "said"),
    [
        ("cats=", "'cats=' is no network; give NAME=NET"),
        ("=net.onnx", "'=net.onnx' is no network"),
        ("{folder}", "is a folder; a folder of models is served with --repository "),
        ("cats={folder}", "is a folder; a folder of models is served with --repository "),
    ],
)
def test_what_is_no_network(net: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--port", "0", net.format(folder=tmp_path)]) == 1
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--model-repository=/models", "; did you mean --repository?"),
        ("--memory-limit", "; did you mean --memory-budget"),
        ("--zzzzzz", "unrecognized arguments: --zzzzzz\n"),
    ],
)
def test_a_flag_that_is_none_is_told_with_the_nearest(
    flag: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["serve", flag])
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert told.startswith("usage: convserve serve [OPTION ...] [NET ...]\n")
    assert said in told
