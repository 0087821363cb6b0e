"""The settings: precedence of sources, refusals, and the table in the documentation."""

from __future__ import annotations

from pathlib import Path

import pytest

from headrace.server import config
from headrace.server.config import ConfigError, Settings

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name in Settings.model_fields:
        monkeypatch.delenv(f"HEADRACE_{name.upper()}", raising=False)


def test_flags_win_over_the_environment_and_that_over_the_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "headrace.yaml").write_text("http_port: 1111\ngrpc_port: 2222\nmax_queue_size: 3\n")
    monkeypatch.setenv("HEADRACE_GRPC_PORT", "3333")
    settings = config.load(["--max-queue-size", "4"])
    assert (settings.http_port, settings.grpc_port, settings.max_queue_size) == (1111, 3333, 4)


def test_lists_and_switches_are_plain_flags() -> None:
    settings = config.load(["--model-repository", "a", "--model-repository", "b", "--no-envoy"])
    assert settings.model_repository == [Path("a"), Path("b")]
    assert settings.envoy is False


def test_another_file_can_be_named_and_must_exist(tmp_path: Path) -> None:
    (tmp_path / "other.yaml").write_text("server_id: mine\n")
    assert config.load(file=tmp_path / "other.yaml").server_id == "mine"
    with pytest.raises(ConfigError, match=r"nope\.yaml does not exist"):
        config.load(file=tmp_path / "nope.yaml")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("http_port: 70000", "http_port"),
        (
            "htp_port: 8000",
            "configuration file headrace.yaml: htp_port: there is no such setting; did you mean http_port?",
        ),
        ("Grpc-Prot: 1", "Grpc-Prot: there is no such setting; did you mean grpc_port?"),
        ("q: 1", "headrace.yaml: q: there is no such setting; docs/configuration.md lists all"),
        ("max_queue_size: many", "max_queue_size: Input should be a valid integer"),
        ("model_control_mode: poll", "model_control_mode"),
        ("model_repository: []", "at least one folder is needed"),
        ("http_host: 0.0.0.0", "allow_anonymous"),
        ("model_repository: [", "headrace.yaml is not YAML that can be read"),
        ("- http_port", "headrace.yaml: expected lines such as 'http_port: 8000'"),
        ("8000: http_port", "headrace.yaml: expected lines such as 'http_port: 8000'"),
    ],
)
def test_an_illegal_setting_is_named(tmp_path: Path, text: str, expected: str) -> None:
    (tmp_path / "headrace.yaml").write_text(text)
    with pytest.raises(ConfigError) as raised:
        config.load()
    assert expected in str(raised.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("http_host: 0.0.0.0", "http_host is '0.0.0.0', which others can reach"),
        ("tls_key: k.pem", "tls_key cannot be used without tls_certificate"),
        ("model_repository: []", "model_repository: at least one folder is needed"),
    ],
)
def test_refusals_of_our_own_begin_with_the_setting(tmp_path: Path, text: str, expected: str) -> None:
    (tmp_path / "headrace.yaml").write_text(text)
    with pytest.raises(ConfigError) as raised:
        config.load()
    assert str(raised.value).startswith(expected)


def test_words_of_the_file_stay_words_and_switches_take_them(tmp_path: Path) -> None:
    (tmp_path / "headrace.yaml").write_text(
        "tuning: off\nserver_id: yes\nload_models: [no, true story]\n"
        "envoy: off\nallow_anonymous: Yes\nfuse_attention: false\n"
    )
    settings = config.load()
    assert (settings.tuning, settings.server_id) == ("off", "yes")
    assert settings.load_models == ["no", "true story"]
    assert (settings.envoy, settings.allow_anonymous, settings.fuse_attention) == (False, True, False)


def test_settings_of_the_file_may_be_in_capitals(tmp_path: Path) -> None:
    (tmp_path / "headrace.yaml").write_text("HTTP_PORT: 1111")
    assert config.load().http_port == 1111


def test_a_repository_must_be_a_folder_and_may_be_empty(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    config.require_repositories([tmp_path / "empty"])
    what_to_do = "give --model-repository an existing folder, or run `headrace pull demo`"
    for name, wrong in (("nope", "there is no folder '{}': "), ("file", "'{}' is not a folder: ")):
        with pytest.raises(ConfigError) as raised:
            config.require_repositories([tmp_path / "empty", tmp_path / name])
        assert str(raised.value).startswith(wrong.format(tmp_path / name) + what_to_do)


def test_a_repository_that_cannot_be_read_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def scandir(path: Path) -> None:  # a superuser, as in a container, can read everything
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("os.scandir", scandir)
    with pytest.raises(ConfigError, match=r"the folder '/models' cannot be read \(Permission denied\): give"):
        config.require_repositories([Path("/models")])


def test_a_file_of_another_encoding_is_refused(tmp_path: Path) -> None:
    (tmp_path / "headrace.yaml").write_bytes(b"server_id: \xe9")
    with pytest.raises(ConfigError, match=r"headrace\.yaml is not YAML that can be read"):
        config.load()


@pytest.mark.parametrize(
    ("text", "expected"),
    [("a b", ["a b"]), ('["a", "b,c"]', ["a", "b,c"]), ("[]", []), (" a ", ["a"])],
)
def test_a_list_in_the_environment_is_one_bare_value_or_json(
    monkeypatch: pytest.MonkeyPatch, text: str, expected: list[str]
) -> None:
    monkeypatch.setenv("HEADRACE_LOAD_MODELS", text)
    monkeypatch.setenv("HEADRACE_MODEL_REPOSITORY", "/models")
    settings = config.load()
    assert (settings.load_models, settings.model_repository) == (expected, [Path("/models")])


@pytest.mark.parametrize("text", ["s3cret,other", "", '["s3cret"', "[s3cret]"])
def test_a_list_that_cannot_be_read_is_refused_without_showing_it(
    monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv("HEADRACE_API_KEYS", text)
    with pytest.raises(ConfigError, match="HEADRACE_API_KEYS: expected one value or a JSON list") as raised:
        config.load()
    assert "s3cret" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("HEADRACE_GRPC_PROT", "no such setting; did you mean HEADRACE_GRPC_PORT?"),
        ("HEADRACE_Q", r"HEADRACE_Q: there is no such setting; docs/configuration\.md"),
    ],
)
def test_an_unknown_variable_is_named(monkeypatch: pytest.MonkeyPatch, name: str, expected: str) -> None:
    monkeypatch.setenv(name, "1")
    with pytest.raises(ConfigError, match=expected):
        config.load()


def test_what_kubernetes_says_of_a_service_is_no_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    for end in ("SERVICE_HOST", "SERVICE_PORT_GRPC", "PORT", "PORT_8001_TCP_ADDR"):
        monkeypatch.setenv(f"HEADRACE_{end}", "tcp://10.0.0.1:8001")
    assert config.load().grpc_port == 8001
    monkeypatch.setenv("HEADRACE_POTR", "1")
    with pytest.raises(ConfigError, match="HEADRACE_POTR"):
        config.load()


def test_listening_for_others_is_possible_when_said() -> None:
    assert config.load(["--http-host", "0.0.0.0", "--allow-anonymous"]).http_host == "0.0.0.0"


def test_fused_graphs_have_a_folder_unless_attention_is_left_as_it_is(tmp_path: Path) -> None:
    assert config.load().fused_graphs == str(tmp_path / ".cache" / "graphs")
    assert config.load(["--graph-cache", "/srv/graphs"]).fused_graphs == "/srv/graphs"
    assert config.load(["--no-fuse-attention"]).fused_graphs == ""


@pytest.mark.parametrize("name", list(Settings.model_fields))
def test_every_setting_is_documented_by_its_own_description(name: str) -> None:
    description = Settings.model_fields[name].description
    assert description
    table = (ROOT / "docs" / "configuration.md").read_text()
    assert f"| `{name}` |" in table
    assert description.replace("|", "\\|") in table
