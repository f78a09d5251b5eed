"""What the user wrote is checked whole before any engine starts; who does not use the plugin never sees it."""

import sys

from pytest_command import PLAIN

BAD = """
version = 1
[[limit]]
match = { engine = "onne" }
ttft_meen = { max = "1 s" }
output_throughput = { max = "10 tok/s" }
"""


def test_every_mistake_of_the_thresholds_file_is_told_at_once_before_any_engine_starts(project):
    project.write(thresholds=BAD)
    result = project.run()
    assert result.ret == 4
    result.stderr.fnmatch_lines(["*thresholds.toml: 3 problems*"])
    for part in ("onne", "ttft_meen", "output_throughput"):
        assert part in result.stderr.str()
    assert not (project.path / "reports").exists()


def test_a_tie_between_limits_is_a_usage_error_before_any_engine_starts(project):
    project.write(
        thresholds="""
        version = 1
        [[limit]]
        match = { engine = "one" }
        ttft_mean = { max = "1 s" }
        [[limit]]
        match = { workload = "tiny" }
        ttft_mean = { max = "2 s" }
        """
    )
    result = project.run()
    assert result.ret == 4
    result.stderr.fnmatch_lines(["*limit*1*limit*2*"])
    assert not (project.path / "reports").exists()


def test_a_thresholds_file_named_and_missing_is_a_usage_error(project):
    project.write()
    result = project.run("--vllmperf-thresholds=nowhere.toml")
    assert result.ret == 4
    result.stderr.fnmatch_lines(["*nowhere.toml*"])


def test_collect_only_launches_nothing_and_writes_nothing(project):
    project.write()
    result = project.run("--collect-only", "-q")
    assert result.ret == 0
    result.stdout.fnmatch_lines(["*test_first_token*one*"])
    assert not (project.path / "reports").exists()
    assert not project.history


def test_collect_only_looks_for_no_gpu_and_opens_no_socket(project):
    project.write(
        files={
            "spy.py": """
            import re
            import sys

            def hook(event, args):
                if event == "subprocess.Popen" and not {"python", "nvidia"} & set(re.findall("[a-z]+", str(args[0]))):
                    return  # pytest-benchmark asks git and uname
                if event in ("socket.connect", "socket.bind", "subprocess.Popen"):
                    raise RuntimeError(f"{event} while collecting")
                if event == "import" and args[0] in ("pynvml", "httpx", "lm_eval", "torch"):
                    raise RuntimeError(f"import of {args[0]} while collecting")

            sys.addaudithook(hook)
            """
        }
    )
    result = project.run("--collect-only", "-q", "-p", "spy")
    assert result.ret == 0, result.stdout.str() + result.stderr.str()


def test_a_project_without_engines_sees_nothing_of_the_plugin(pytester):
    pytester.makepyfile("def test_it():\n    assert True\n")
    with_plugin = pytester.runpytest_subprocess("-v")
    without = pytester.runpytest_subprocess("-v", "-p", "no:vllmperf")
    assert "vllmperf" not in with_plugin.stdout.str().replace("plugins: ", "", 1).replace("vllmperf-0", "plugin-0")
    assert with_plugin.ret == without.ret == 0
    assert not (pytester.path / "reports").exists()


def test_declared_engines_do_not_gate_a_run_that_uses_none(project):
    project.write(files={"suites/test_plain.py": "def test_plain():\n    assert True\n"})
    result = project.run(suites="suites/test_plain.py")
    assert result.ret == 0
    assert "vllmperf:" not in result.stdout.str()


def test_using_an_engine_without_declaring_any_says_what_to_do(pytester):
    pytester.makepyfile("def test_it(vllm_engine):\n    assert vllm_engine\n")
    result = pytester.runpytest_subprocess()
    assert result.ret != 0
    result.stdout.fnmatch_lines(["*implement pytest_vllmperf_engines(config) in conftest.py*"])


def test_the_plugin_loads_nothing_heavy_where_it_is_not_used(pytester):
    pytester.makeconftest(
        """
        import sys

        def pytest_unconfigure(config):
            heavy = {"numpy", "scipy", "httpx", "msgspec", "psutil", "lm_eval", "tomlkit", "pynvml"} & set(sys.modules)
            print("HEAVY", sorted(heavy))
        """
    )
    pytester.makepyfile("def test_it():\n    assert True\n")
    result = pytester.runpytest_subprocess("-s", *PLAIN, "-pno:benchmark")
    assert "HEAVY []" in result.stdout.str(), sys.version


def test_collecting_tests_of_an_engine_loads_nothing_that_only_measuring_or_calibrating_needs(pytester):
    pytester.makeconftest(
        """
        import sys
        from pytest_vllmperf import EngineConfig

        def pytest_vllmperf_engines(config):
            return [EngineConfig(name="one", model="fake")]

        def pytest_unconfigure(config):
            dear = {"scipy", "numpy", "httpx", "psutil", "lm_eval", "tomlkit", "pynvml"}
            ours = {"domain.calibration", "domain.summary", "measurement", "pool"}
            dear |= {f"pytest_vllmperf.{name}" for name in ours}
            print("DEAR", sorted(dear & set(sys.modules)))
        """
    )
    pytester.makepyfile("def test_it(vllm_engine):\n    assert vllm_engine\n")
    result = pytester.runpytest_subprocess("-s", "--collect-only", *PLAIN, "-pno:benchmark")
    result.stdout.fnmatch_lines(["*test_it?one?*", "*DEAR*"])
    assert "DEAR []" in result.stdout.str()
