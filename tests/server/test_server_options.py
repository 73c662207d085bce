"""The options: three layers and their origins, every mistake at once, and a help text that reads well."""

import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from storyloom_server.main import main
from storyloom_server.option_layers import OptionsError, read_options
from storyloom_server.options import GROUPS, ServerOptions


def problems(*arguments: str, **environment: str) -> tuple[str, ...]:
    with pytest.raises(OptionsError) as caught:
        read_options(arguments, environment)
    return caught.value.problems


def config(folder: Path, text: str) -> Path:
    path = folder / "storyloom.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def help_text(capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as caught:
        read_options(["--help"], {})
    assert caught.value.code == 0
    return capsys.readouterr().out


def test_command_line_over_environment_over_file_over_default(tmp_path: Path) -> None:
    file = config(tmp_path, "port: 1\nmax_rows: 1\nmax-queue: 1\n")
    read = read_options(
        ["--config", str(file), "--port", "3"], {"STORYLOOM_PORT": "2", "STORYLOOM_MAX_ROWS": "2", "OTHER": "x"}
    )
    options = read.options
    assert (options.port, options.max_rows, options.max_queue, options.max_active) == (3, 2, 1, 32)
    assert read.origins["port"] == "--port"
    assert read.origins["max_rows"] == "STORYLOOM_MAX_ROWS"
    assert read.origins["max_queue"] == f"{file}:3: max_queue"
    assert "max_active" not in read.origins


def test_the_file_may_be_named_in_the_environment(tmp_path: Path) -> None:
    file = config(tmp_path, "port: 1\n")
    assert read_options([], {"STORYLOOM_CONFIG": str(file)}).options.port == 1


def test_values_mean_the_same_wherever_they_stand(tmp_path: Path) -> None:
    """YAML alone would read ``off`` as false, ``1e3`` as text and 0777 as octal."""
    file = config(tmp_path, "safety: off\nhang_seconds: 1e3\nport: 0777\ncompile: on\nmodel: [a, b]\nthreads:\n")
    options = read_options(["--config", str(file)], {}).options
    assert (options.safety, options.hang_seconds, options.port, options.compile) == ("off", 1000, 777, True)
    assert options.model == [Path("a"), Path("b")]
    assert options.threads is None


def test_models_come_from_repeated_options_or_one_variable() -> None:
    assert read_options(["--model", "a", "--model", "b"], {}).options.model == [Path("a"), Path("b")]
    assert read_options([], {"STORYLOOM_MODEL": "a:b"}).options.model == [Path("a"), Path("b")]


def test_all_mistakes_are_told_at_once_with_their_places(tmp_path: Path) -> None:
    file = config(tmp_path, "max_row: 3\nmax_queue: many\nport: {a: 1}\nsafety: block\nsafety: flag\n")
    told = problems("--config", str(file), "--threads", "0", "--what", STORYLOOM_DRAIN_SECONDS="-1")
    assert set(told) == {
        "--what: there is no such option; see --help",
        f"{file}:1: max_row: there is no such option; did you mean max_rows?",
        f"{file}:2: max_queue: Input should be a valid integer, unable to parse string as an integer",
        f"{file}:3: port: takes one value or a list of them, not more structure",
        f"{file}:5: safety: is set twice; remove one",
        "--threads: Input should be greater than or equal to 1",
        "STORYLOOM_DRAIN_SECONDS: Input should be greater than or equal to 0",
    }


@pytest.mark.parametrize(
    ("text", "told"), [("- port", "holds no options"), ("a: [", "is not YAML"), ("\x00", "is not YAML")]
)
def test_files_that_hold_no_options_are_told(tmp_path: Path, text: str, told: str) -> None:
    (problem,) = problems("--config", str(config(tmp_path, text)))
    assert problem.startswith(str(tmp_path))
    assert told in problem


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    assert problems("--config", str(tmp_path / "none.yaml")) == (
        f"--config: cannot read {tmp_path / 'none.yaml'} (No such file or directory); name a file with options",
    )


def test_an_empty_file_sets_nothing(tmp_path: Path) -> None:
    assert read_options(["--config", str(config(tmp_path, "# nothing\n"))], {}).options == ServerOptions()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--tls-key", "k"], "--tls-key: is a key without a certificate; give tls_cert too"),
        (["--tls-cert", "c"], "--tls-cert: is a certificate without its key; give tls_key too"),
        (["--tls-client-ca", "c"], "--tls-client-ca: needs encrypted calls; give tls_cert and tls_key too"),
        (["--tokens", "t", "--admin"], "--admin: is for servers without a tokens file; mark the tenant as admin"),
        (["--metrics-port", "50051"], "--metrics-port: 50051 is the port of the stories; choose another"),
        (["--blocked-words", "f"], "--blocked-words: has no effect while safety is off"),
        (["--safety", "block"], "--safety: has nothing to check with"),
        (["--safety", "flag", "--picture-classifier", "f"], "--refused-labels: and picture_classifier go together"),
    ],
)
def test_options_that_do_not_go_together_are_told(arguments: list[str], told: str) -> None:
    (problem,) = problems(*arguments)
    assert problem.startswith(told)


def test_a_near_miss_in_the_environment_is_warned_of() -> None:
    read = read_options([], {"STORYLOOM_MAX_ROW": "9", "STORYLOOM_SERVER": "here:1", "STORYLOOM_TEST_THING": "1"})
    assert read.warnings == ["STORYLOOM_MAX_ROW is no option; did you mean STORYLOOM_MAX_ROWS?"]


def test_variables_that_kubernetes_sets_for_a_service_of_our_name_are_left_alone() -> None:
    assert read_options([], {"STORYLOOM_PORT": "tcp://10.0.0.1:50051"}).options.port == 50051


def test_help_shows_every_option_under_its_group_with_its_default(help_text: str) -> None:
    sections = dict(re.findall(r"^(\S.*):\n((?:  .*\n?)+)", help_text, re.MULTILINE))
    for group in GROUPS:
        entries = re.split(r"^  (?=--)", sections[str(group.__doc__)], flags=re.MULTILINE)[1:]
        assert len(entries) == len(group.model_fields)
        for entry, name in zip(entries, group.model_fields, strict=True):
            assert re.match(rf"--{name.replace('_', '-')}[ ,]", entry)
            assert re.search(r"\[[^\]]+\]\s*$", entry), f"{name} shows no default"
    assert "[50051]" in sections["Network"]
    assert "--config" in sections["General"]


def test_help_has_no_type_noise_and_fits_a_terminal(help_text: str) -> None:
    assert not re.search(r"[{}]|None|Path\(|list\[|<", help_text)
    assert max(map(len, help_text.splitlines())) <= 120


def test_what_is_printed_can_be_read_again_and_hides_passwords(tmp_path: Path) -> None:
    url = "postgresql://storyloom:s3cret@db/stories"
    read = read_options(
        ["--max-rows", "9", "--model", "a: b", "--database-url", url, "--hang-seconds", "0.25"],
        {"STORYLOOM_PORT": "4"},
    )
    printed = read.printed()
    assert "s3cret" not in printed
    assert "port: 4  # STORYLOOM_PORT" in printed
    assert 'database_url: "postgresql://storyloom:***@db/stories"  # --database-url' in printed
    again = read_options(["--config", str(config(tmp_path, printed)), "--database-url", url], {}).options
    assert again == read.options
    assert set(yaml.safe_load(printed)) == set(ServerOptions.model_fields)


def test_the_program_prints_and_complains(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--print-config", "--port", "4"]) == 0
    assert "port: 4  # --port" in capsys.readouterr().out
    assert main(["--port", "x", "--nonsense"]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "storyloom: --nonsense: there is no such option; see --help",
        "storyloom: --port: Input should be a valid integer, unable to parse string as an integer",
    ]


def test_the_state_folder_follows_xdg(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/var/state")
    options = ServerOptions()
    assert options.state_folder == Path("/var/state/storyloom")
    monkeypatch.setenv("XDG_STATE_HOME", "relative/is/ignored")
    monkeypatch.setenv("HOME", "/home/me")
    assert ServerOptions().state_folder == Path("/home/me/.local/state/storyloom")


@given(st.dictionaries(st.sampled_from(sorted(ServerOptions.model_fields)), st.text(max_size=8), max_size=5))
def test_no_text_in_the_environment_makes_more_than_a_told_problem(values: dict[str, str]) -> None:
    environment = {f"STORYLOOM_{name.upper()}": value for name, value in values.items()}
    try:
        read_options([], environment)
    except OptionsError as error:
        assert all(re.match(r"(STORYLOOM_|--)[\w-]+: .", problem) for problem in error.problems)  # noqa: PT017
