"""The server over TLS: its certificate, clients' certificates, files that change and files that are wrong."""

import shutil
import subprocess
from pathlib import Path

import pytest
from serving import FakeModel, running_server

import convserve
from convserve import errors
from convserve.cli.main import main
from convserve.client import Client
from convserve.server.access import Access
from convserve.server.tls import Certificates

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl, which makes certificates, is absent")


DIGIT = Path(convserve.__file__).parent / "bundled" / "digit.png"


def openssl(*arguments: object) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)


def authority(folder: Path, name: str) -> tuple[Path, Path]:
    """Make a certificate that may sign others, for localhost too; return (key, certificate)."""
    key, found = folder / f"{name}.key", folder / f"{name}.pem"
    openssl(
        "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", 2,
        "-subj", f"/CN={name}", "-addext", "subjectAltName=DNS:localhost", "-keyout", key, "-out", found,
    )  # fmt: skip
    return key, found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("tls")
    for name in ("first", "second", "clients", "strangers"):
        authority(found, name)
    return found


def certificates(folder: Path, *, client_ca: Path | None = None) -> Certificates:
    return Certificates(
        str(folder / "first.pem"), str(folder / "first.key"), None if client_ca is None else str(client_ca)
    )


def localhost(address: str) -> str:
    return "localhost:" + address.rpartition(":")[2]


def test_a_client_that_trusts_the_certificate_is_answered(folder: Path) -> None:
    with running_server({"fake": FakeModel()}, {"certificates": certificates(folder)}) as address:
        with Client(localhost(address), tls=folder / "first.pem") as client:
            assert client.list_models()
        for tls in (folder / "second.pem", None):
            with (
                Client(localhost(address), tls=tls, retries=0, timeout=5) as client,
                pytest.raises(errors.ServerUnavailable),
            ):
                client.list_models()


@pytest.mark.parametrize("name", ["clients", "strangers", None])
def test_only_clients_of_the_authority_may_connect(folder: Path, name: str | None) -> None:
    found = certificates(folder, client_ca=folder / "clients.pem")
    with running_server({"fake": FakeModel()}, {"certificates": found}) as address:
        shown = None if name is None else (folder / f"{name}.pem", folder / f"{name}.key")
        options = {"tls": folder / "first.pem", "certificate": shown, "retries": 0, "timeout": 10}
        with Client(localhost(address), **options) as client:  # type: ignore[arg-type]
            if name == "clients":
                assert client.list_models()
            else:
                with pytest.raises(errors.ServerUnavailable):
                    client.list_models()


def test_a_certificate_is_no_token(folder: Path, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens.toml"
    tokens.write_text('[clients.a]\ntoken = "0123456789abcdef"\n')
    tokens.chmod(0o600)
    both = {"certificates": certificates(folder, client_ca=folder / "clients.pem"), "access": Access(str(tokens))}
    shown = (folder / "clients.pem", folder / "clients.key")
    with running_server({"fake": FakeModel()}, both) as address:
        options = {"tls": folder / "first.pem", "certificate": shown, "retries": 0, "timeout": 20}
        with Client(localhost(address), token="0123456789abcdef", **options) as client:  # type: ignore[arg-type]
            assert client.list_models()
        with (
            Client(localhost(address), **options) as client,  # type: ignore[arg-type]
            pytest.raises(errors.AuthenticationError),
        ):
            client.list_models()


def test_the_command_line_shows_a_certificate(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = certificates(folder, client_ca=folder / "clients.pem")
    with running_server({"fake": FakeModel()}, {"certificates": found}) as address:
        asked = ["classify", str(DIGIT), "--server", localhost(address), "--tls", str(folder / "first.pem")]
        shown = ["--certificate", str(folder / "clients.pem"), str(folder / "clients.key")]
        assert main([*asked, *shown]) == 0
        assert main([*asked, "--timeout", "2"]) == 1
    assert "zero" in capsys.readouterr().out


def test_a_clients_certificate_needs_tls_and_files_that_are_there(folder: Path) -> None:
    with pytest.raises(errors.InputError, match="over TLS only"):
        Client("localhost:1", certificate=(folder / "clients.pem", folder / "clients.key"))
    with pytest.raises(errors.InputError, match=r"the key '.*none.key' cannot be read"):
        Client("localhost:1", tls=True, certificate=(folder / "clients.pem", folder / "none.key"))


def test_a_certificate_that_changes_is_read_again_and_a_wrong_one_is_not(folder: Path, tmp_path: Path) -> None:
    for suffix in ("pem", "key"):
        shutil.copy(folder / f"first.{suffix}", tmp_path / f"first.{suffix}")

    def answers(trusted: str) -> bool:
        with Client(localhost(address), tls=folder / f"{trusted}.pem", retries=0, timeout=5) as client:
            try:
                return bool(client.list_models())
            except errors.ServerUnavailable:
                return False

    with running_server({"fake": FakeModel()}, {"certificates": certificates(tmp_path)}) as address:
        assert (answers("first"), answers("second")) == (True, False)
        # the certificate came, its key did not yet
        shutil.copy(folder / "second.pem", tmp_path / "first.pem")
        assert (answers("first"), answers("second")) == (True, False)
        shutil.copy(folder / "second.key", tmp_path / "first.key")
        assert (answers("first"), answers("second")) == (False, True)
        (tmp_path / "first.key").unlink()
        assert answers("second")


@pytest.mark.parametrize("wrong", ["missing", "garbage", "other key", "client_ca", "encrypted"])
def test_files_that_cannot_be_used_are_named(folder: Path, tmp_path: Path, wrong: str) -> None:
    (tmp_path / "garbage").write_bytes(b"\0garbage" * 100)
    openssl("ec", "-in", folder / "first.key", "-aes256", "-passout", "pass:secret", "-out", tmp_path / "encrypted")
    cert, key = str(folder / "first.pem"), str(folder / "first.key")
    found = {
        "missing": Certificates(str(tmp_path / "none.pem"), key),
        "garbage": Certificates(str(tmp_path / "garbage"), key),
        "other key": Certificates(cert, str(folder / "second.key")),
        "client_ca": Certificates(cert, key, str(tmp_path / "garbage")),
        "encrypted": Certificates(cert, str(tmp_path / "encrypted")),
    }[wrong]
    with pytest.raises(errors.InputError, match="cannot be used: ") as error:
        found.credentials()
    assert "\n" not in str(error.value)
