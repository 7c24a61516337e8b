import json
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from hwnas.errors import InputError
from hwnas.ir.trellis import Trellis
from hwnas.search.evolution import EvolutionConfig, search_evolution
from hwnas.search.journal import Journal, load_scores
from hwnas.search.random import search_random
from tests.search.problems import AdditiveScore, make_problem, make_space

CONFIG = EvolutionConfig(population=10, generations=4, parents=4, crossover=4, mutation=4)
ROOT = Path(__file__).parents[2]


class Counted:
    """A score that remembers what it was asked for, and fails at a given call."""

    def __init__(self, score, fail_at=None):
        self.score = score
        self.calls = []
        self.fail_at = fail_at

    def __call__(self, architectures):
        if len(self.calls) == self.fail_at:
            raise RuntimeError("out of memory")
        self.calls.extend(architectures)
        return self.score(architectures)


@pytest.fixture
def problem():
    return make_problem(8, 4)


@pytest.fixture
def journal(tmp_path):
    return tmp_path / "history.jsonl"


def test_the_journal_is_the_history(problem, journal):
    trellis, score, budget = problem
    result = search_evolution(trellis, score, budget, CONFIG, Journal(journal, {"weights": "abc"}))
    header, *lines = [json.loads(line) for line in journal.read_text().splitlines()]
    assert header == {"schema": "hwnas.search/1", "space": "problem", "space_hash": trellis.space.hash, "method": "evolution",
                      "seed": 0, "max_cost": budget, "cost_range": [trellis.min_cost(), trellis.max_cost()],
                      "config": {"population": 10, "generations": 4, "parents": 4, "crossover": 4, "mutation": 4,
                                 "mutation_probability": 0.1, "seed": 0}, "context": {"weights": "abc"}}
    assert lines == [{"choices": dict(candidate.architecture.choices), "score": candidate.score, "cost": candidate.cost,
                      "generation": candidate.generation} for candidate in result.history]


@pytest.mark.parametrize("calls", [0, 1, 17, 39])
def test_a_killed_search_resumes_where_it_was(tmp_path, problem, calls):
    """SIGKILL from within an evaluation, in a process of its own."""
    trellis, score, budget = problem
    script = textwrap.dedent(f"""
        import os, signal, sys
        from hwnas.search.evolution import search_evolution
        from hwnas.search.journal import Journal
        from tests.search.problems import make_problem
        from tests.search.test_journal import CONFIG
        trellis, score, budget = make_problem(8, 4)
        log = open({str(tmp_path / "log")!r}, "a", buffering=1)
        done = 0
        def evaluate(architectures):
            global done
            if done == {calls}:
                os.kill(os.getpid(), signal.SIGKILL)
            done += 1
            log.writelines(str(architecture) + "\\n" for architecture in architectures)
            return score(architectures)
        search_evolution(trellis, evaluate, budget, CONFIG, Journal({str(tmp_path / "history.jsonl")!r}))
    """)
    killed = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    before = (tmp_path / "log").read_text().splitlines()
    assert len(before) == calls

    counted = Counted(score)
    resumed = search_evolution(trellis, counted, budget, CONFIG, Journal(tmp_path / "history.jsonl"))
    evaluated = before + [str(architecture) for architecture in counted.calls]
    assert len(evaluated) == len(set(evaluated)) == resumed.evaluations == 40
    whole = search_evolution(trellis, score, budget, CONFIG, Journal(tmp_path / "whole.jsonl"))
    assert (resumed.history, resumed.best) == (whole.history, whole.best)
    assert (tmp_path / "history.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_a_finished_search_evaluates_nothing_again(problem, journal):
    trellis, score, budget = problem
    first = search_random(trellis, score, budget, 30, 5, Journal(journal))
    counted = Counted(score)
    again = search_random(trellis, counted, budget, 30, 5, Journal(journal))
    assert counted.calls == [] and again.history == first.history


def test_a_half_written_last_line_is_written_again(problem, journal):
    trellis, score, budget = problem
    search_random(trellis, score, budget, 6, 0, Journal(journal))
    content = journal.read_bytes()
    last = content[:-1].rfind(b"\n") + 1
    for length in range(last, len(content)):
        journal.write_bytes(content[:length])
        counted = Counted(score)
        search_random(trellis, counted, budget, 6, 0, Journal(journal))
        assert len(counted.calls) == 1
        assert journal.read_bytes() == content


@pytest.mark.parametrize("line", [
    b"", b"{", b"[]", b"\xff\x00", b"1" * 5000, b'{"score": 1.0}', b'{"choices": {}, "score": 1.0}',
    b'{"choices": {"d0": []}, "score": 1.0}', b'{"choices": {"d0": "nothing"}, "score": 1.0}'])
@pytest.mark.parametrize("position", [2, 4])
def test_a_damaged_line_is_named(problem, journal, line, position):
    trellis, score, budget = problem
    search_random(trellis, score, budget, 6, 0, Journal(journal))
    lines = journal.read_bytes().split(b"\n")
    lines[position - 1] = line
    journal.write_bytes(b"\n".join(lines))
    with pytest.raises(InputError, match=f"line {position} "):
        search_random(trellis, score, budget, 6, 0, Journal(journal))
    search_random(trellis, score, budget, 6, 0, Journal(journal, overwrite=True))
    assert len(journal.read_text().splitlines()) == 7


@pytest.mark.parametrize("score", [b"NaN", b"Infinity", b'"1"', b"null", b"true"])
def test_a_journal_holds_finite_scores_only(problem, journal, score):
    trellis, evaluate, budget = problem
    search_random(trellis, evaluate, budget, 2, 0, Journal(journal))
    header, first, *rest = journal.read_bytes().split(b"\n")
    choices = json.dumps(json.loads(first)["choices"]).encode()
    journal.write_bytes(b"\n".join([header, b'{"choices": %s, "score": %s}' % (choices, score), *rest]))
    with pytest.raises(InputError, match="line 2 "):
        search_random(trellis, evaluate, budget, 2, 0, Journal(journal))


@pytest.mark.parametrize("content", [b"", b"not a journal", b"{}\n", b"[]\n", b'{"schema": "other"}\n'])
def test_another_file_is_not_taken_for_a_journal(problem, journal, content):
    trellis, score, budget = problem
    journal.write_bytes(content)
    with pytest.raises(InputError, match="--overwrite"):
        search_random(trellis, score, budget, 6, 0, Journal(journal))
    assert journal.read_bytes() == content


def test_the_key_that_differs_is_named(problem, journal):
    trellis, score, budget = problem
    context = {"weights": "abc", "data": {"name": "glyphs"}}
    other_costs = make_problem(8, 4, seed=1)[0]
    other_space = make_space(7, 4)

    def evolve(trellis=trellis, score=score, budget=budget, context=context, **constants):
        constants = {"population": 10, "generations": 4, "parents": 4, "crossover": 4, "mutation": 4} | constants
        return search_evolution(trellis, score, budget, EvolutionConfig(**constants), Journal(journal, context))

    evolve()
    content = journal.read_bytes()
    for key, search in {
        "max_cost": lambda: evolve(budget=budget * 1.1),
        "seed": lambda: evolve(seed=2),
        "config.parents": lambda: evolve(parents=3),
        "method": lambda: search_random(trellis, score, budget, 10, 0, Journal(journal, context)),
        "context.weights": lambda: evolve(context=context | {"weights": "x"}),
        "context.data.name": lambda: evolve(context=context | {"data": {"name": "digits"}}),
        "context.more": lambda: evolve(context=context | {"more": 1}),
        "cost_range": lambda: evolve(other_costs),
        "space_hash": lambda: evolve(Trellis(other_space), AdditiveScore(other_space), None),
    }.items():
        with pytest.raises(InputError, match=rf"has {key} .*--overwrite"):
            search()
        assert journal.read_bytes() == content


def test_a_failing_evaluator_leaves_what_was_scored(problem, journal):
    trellis, score, budget = problem
    with pytest.raises(RuntimeError, match="out of memory"):
        search_evolution(trellis, Counted(score, fail_at=13), budget, CONFIG, Journal(journal))
    assert len(journal.read_text().splitlines()) == 1 + 13
    counted = Counted(score)
    search_evolution(trellis, counted, budget, CONFIG, Journal(journal))
    assert len(counted.calls) == 40 - 13


def test_scores_serve_another_search_of_the_same_evaluator(problem, journal):
    trellis, score, budget = problem
    result = search_evolution(trellis, score, budget, CONFIG, Journal(journal, {"weights": "abc"}))
    scores = load_scores(journal, trellis.space, {"weights": "abc"})
    assert scores == {candidate.architecture: candidate.score for candidate in result.history}
    with pytest.raises(InputError, match=r"context\.weights"):
        load_scores(journal, trellis.space, {"weights": "other"})
    with pytest.raises(InputError, match="space_hash"):
        load_scores(journal, make_space(7, 4), {"weights": "abc"})
    with pytest.raises(InputError, match="cannot be read"):
        load_scores(journal.parent / "none", trellis.space, {})
