"""The best path within a budget, without rounding any cost.

Labels (Pareto-optimal prefixes) under Lagrangian bounds (Handler and Zang, "A dual algorithm for the constrained shortest
path problem", Networks 1980).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hwnas.ir.grid import FORBIDDEN, Floats, Ints

_MAX_LABELS = 1 << 15


@dataclass(frozen=True)
class _Policy:
    """The best way to the end from every state when slack has a price: one array over states for every stage.

    Attributes:
        price: Score that a tick of slack is worth; infinite for the cheapest ways, whose values bound nothing.
        choice: Option taken.
        spent: Slack that the way takes.
        gained: Score that it brings.
    """

    price: float
    choice: list[NDArray[np.intp]]
    spent: list[Ints]
    gained: list[Floats]

    def bound(self, stage: int, state: NDArray[np.intp], left: Ints) -> Floats | float:
        """The most that any way from a state within the slack that is left can bring."""
        if math.isinf(self.price):
            return math.inf
        return self.gained[stage][state] + self.price * (left - self.spent[stage][state])


@dataclass
class _Incumbent:
    """The best path known so far: a prefix (a label), one edge, and a policy's way to the end."""

    score: float
    stage: int
    label: int
    option: int
    policy: _Policy


@dataclass(frozen=True)
class BestPath:
    """Maximise the sum of scores while detours stay within the slack."""

    targets: list[NDArray[np.intp]]
    detours: list[Ints]
    scores: list[Floats]
    slack: int

    def solve(self) -> list[int]:
        """Position of the option that the best path takes in every stage.

        Grows prefixes stage by stage. One is dropped when another at the same state spends no more and scores no less, or
        when no policy's price lets it beat the best path known, which every prefix improves by its cheapest completions.
        """
        policies = self._policies()
        tolerance = 1e-13 * sum(float(np.abs(score).max()) for score in self.scores)
        state = np.zeros(1, np.intp)
        spent = np.zeros(1, np.int64)
        gained = np.zeros(1)
        history: list[tuple[NDArray[np.intp], NDArray[np.intp]]] = []
        best = _Incumbent(-math.inf, 0, 0, 0, policies[0])
        for stage, (target, detour, score) in enumerate(zip(self.targets, self.detours, self.scores, strict=True)):
            label, option = np.nonzero(spent[:, None] + detour[state] <= self.slack)
            edge = state[label], option
            state, spent, gained = target[edge], spent[label] + detour[edge], gained[label] + score[edge]
            for policy in policies:
                fits = spent + policy.spent[stage + 1][state] <= self.slack
                total = np.where(fits, gained + policy.gained[stage + 1][state], -np.inf)
                found = int(total.argmax())
                if total[found] > best.score:
                    best = _Incumbent(float(total[found]), stage, int(label[found]), int(option[found]), policy)
            promising = np.ones(state.size, np.bool_)
            for policy in policies:
                promising &= gained + policy.bound(stage + 1, state, self.slack - spent) > best.score + tolerance
            kept = _pareto(state, spent, gained, np.flatnonzero(promising))
            if kept.size > _MAX_LABELS:
                kept = kept[np.linspace(0, kept.size - 1, _MAX_LABELS).astype(np.intp)]
            if not kept.size:
                break
            state, spent, gained = state[kept], spent[kept], gained[kept]
            history.append((label[kept], option[kept]))
        return self._path(best, history)

    def _policies(self) -> list[_Policy]:
        """The cheapest ways, the best ones, and those at the prices between: the breakpoints next to the slack."""
        low, high = self._policy(math.inf), self._policy(0.0)
        policies = [low, high]
        for _ in range(64):  # a handful: every turn finds a new vertex of the convex hull, or ends
            if high.spent[0][0] <= self.slack:
                break
            rise, run = high.gained[0][0] - low.gained[0][0], float(high.spent[0][0] - low.spent[0][0])
            middle = self._policy(max(rise / run, 0.0))
            policies.append(middle)
            if middle.spent[0][0] in (low.spent[0][0], high.spent[0][0]):
                break
            low, high = (middle, high) if middle.spent[0][0] <= self.slack else (low, middle)
        return [*policies[:2], *policies[2:][-6:]]

    def _policy(self, price: float) -> _Policy:
        outputs = int(self.targets[-1].max()) + 1
        choices: list[NDArray[np.intp]] = []
        spents, gaineds = [np.zeros(outputs, np.int64)], [np.zeros(outputs)]
        for target, detour, score in zip(self.targets[::-1], self.detours[::-1], self.scores[::-1], strict=True):
            spent, gained = detour + spents[-1][target], score + gaineds[-1][target]
            value = np.where(spent == 0, gained, -np.inf) if math.isinf(price) else gained - price * spent
            value = np.where(spent < FORBIDDEN, value, -np.inf)
            choice = value.argmax(axis=1)
            at = np.arange(choice.size), choice
            choices.append(choice)
            spents.append(spent[at])
            gaineds.append(gained[at])
        return _Policy(price, choices[::-1], spents[::-1], gaineds[::-1])

    def _path(self, best: _Incumbent, history: Sequence[tuple[NDArray[np.intp], NDArray[np.intp]]]) -> list[int]:
        taken = [best.option]
        label = best.label
        for labels, options in reversed(history[:best.stage]):
            taken.append(int(options[label]))
            label = int(labels[label])
        taken.reverse()
        state = 0
        for target, option in zip(self.targets, taken, strict=False):
            state = int(target[state, option])
        for target, choice in zip(self.targets[len(taken):], best.policy.choice[len(taken):], strict=True):
            taken.append(int(choice[state]))
            state = int(target[state, taken[-1]])
        return taken


def _pareto(state: NDArray[np.intp], spent: Ints, gained: Floats, among: NDArray[np.intp]) -> NDArray[np.intp]:
    """Those labels that no other at the same state matches in score without spending more; by state, then slack spent."""
    order = among[np.lexsort((-gained[among], spent[among], state[among]))]
    kept = []
    for group in np.split(order, np.flatnonzero(np.diff(state[order])) + 1):
        record = np.maximum.accumulate(gained[group])
        kept.append(group[np.append(True, gained[group][1:] > record[:-1])] if group.size else group)
    return np.concatenate(kept)


def without_infinities(scores: Sequence[Floats]) -> list[Floats]:
    """Replaces minus infinity by one score so low that one fewer of them outweighs everything else.

    The same score in every stage: among paths with equally many, the sum of their other scores decides.
    """
    finite = [score[np.isfinite(score)] for score in scores]
    if all(part.size == score.size for part, score in zip(finite, scores, strict=True)):
        return list(scores)
    drop = 1 + 2 * sum(float(np.abs(part).max()) for part in finite if part.size)
    return [np.where(np.isfinite(score), score, -drop) for score in scores]
