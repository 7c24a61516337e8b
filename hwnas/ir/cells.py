"""A space of cells: small graphs that are searched once and repeated through a network (NASNet, PNASNet, DARTS, one-shot).

A decision belongs to a kind of cell, so an option costs the sum over the cells that repeat it: one edge of the trellis with many
parts. What a cell's inputs need before they can be read, the stem and the classifier are the last, fixed step; where a cell
passes on only the states that nothing in it reads, that step depends on how many those are, and the trellis knows. Choices that
leave a cell without a reader make no network of the space: a runtime would leave the cell out, and so it would cost nothing.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache, partial
from typing import Any, Literal, NamedTuple, TypeVar, get_args

from hwnas.errors import InputError
from hwnas.ir.architecture import Architecture
from hwnas.ir.block import Block, Part
from hwnas.ir.blocks import Resolution, block_from_dict
from hwnas.ir.cell_operations import FactorizedReduction, PreactivatedConv
from hwnas.ir.genotype import INPUTS, Genotype, build_cell
from hwnas.ir.layers import Concat
from hwnas.ir.network import Network, NetworkBuilder, Value
from hwnas.ir.shape import TensorShape, checked_shape
from hwnas.ir.steps import NAME, Edge, Space, Step, without_dead_ends

SCHEMA = "hwnas.cell-space/1"  # 1: 2026-11, first
AROUND = "skeleton"
"""Name of the step of the blocks around the cells."""
Fitting = Literal["always", "where_needed", "resolution"]
Term = tuple[str, int]
"""An operation's name and the state that it reads."""
Item = TypeVar("Item")


@dataclass(frozen=True)
class Cell:
    """One cell of a network.

    Attributes:
        name: Prefixes the names of its nodes.
        kind: Which genotype it has.
        channels: Width of each of its states.
        stride: 2 where it halves the resolution.
        back: Which output is its previous one: 2 is the one before its input, 3 the one before that.
    """

    name: str
    kind: str
    channels: int
    stride: int = 1
    back: int = 2

    def __post_init__(self) -> None:
        _check_names(f"cell {self.name!r}", self.name, self.kind)
        for field_name, low, high in (("channels", 1, 1 << 16), ("stride", 1, 3), ("back", 2, 1 << 16)):
            if not _is_whole(value := getattr(self, field_name), low, high):
                raise InputError(f"A cell's {field_name} must be a whole number of {low} to {high - 1}, but that of "
                                 f"{self.name!r} is {value!r}.")


class Site(NamedTuple):
    """A cell in a network: the shapes of its two inputs, and of the states that it adds."""

    cell: Cell
    inputs: tuple[TensorShape, TensorShape]
    inner: TensorShape

    def shape_of(self, state: int) -> TensorShape:
        return self.inputs[state] if state < INPUTS else self.inner


@dataclass(frozen=True)
class Skeleton:
    """What surrounds the cells, and how they are stacked.

    Attributes:
        input_shape: Channels, height, width of one image.
        stem: Blocks before the first cell; the last two outputs (or the only one, twice) are what it reads.
        cells: From input to output.
        head: The classifier.
        operations: Name to the block at stride 1 and at stride 2, of any width: `out_channels` becomes the cell's.
        previous_first: State 0 is the output before the cell's input, and state 1 its input (DARTS); NASNet has them the
            other way round.
        fitting: How an output becomes a state. `always`: a 1x1 convolution brings both inputs to the cell's width (DARTS).
            `where_needed`: the cell's input always, the previous output only where its width differs (NASNet). `resolution`:
            neither, as operations take any width. A previous output of twice the resolution is reduced in any case.
        strided_operations: Where a cell halves the resolution, the operations on its inputs do it; otherwise both inputs are
            reduced before.

    Raises:
        InputError: A part is missing or of the wrong kind, a name is used twice, or two operations are the same.
    """

    input_shape: TensorShape
    stem: tuple[Block, ...]
    cells: tuple[Cell, ...]
    head: Block
    operations: Mapping[str, tuple[Block, Block]] = field(hash=False)
    previous_first: bool = False
    fitting: Fitting = "where_needed"
    strided_operations: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "input_shape", checked_shape(self.input_shape))
        object.__setattr__(self, "stem", tuple(self.stem))
        object.__setattr__(self, "cells", tuple(self.cells))
        object.__setattr__(self, "operations", {name: tuple(pair) for name, pair in self.operations.items()})
        if not self.stem or not self.cells or not self.operations:
            raise InputError("A skeleton needs a stem, cells and operations, but one of them is empty: add to it.")
        if self.fitting not in get_args(Fitting):
            raise InputError(f"A skeleton's fitting is one of {', '.join(get_args(Fitting))}, but is {self.fitting!r}.")
        for option in ("previous_first", "strided_operations"):
            if not isinstance(getattr(self, option), bool):
                raise InputError(f"A skeleton's {option} must be true or false, but is {getattr(self, option)!r}.")
        self._check_blocks()
        for number, cell in enumerate(self.cells):
            if not isinstance(cell, Cell):
                raise InputError(f"A skeleton's cells must be cells, but one is {cell!r}.")
            if cell.back > 2 + number:
                raise InputError(f"A cell's previous output must exist, but {cell.name!r} looks {cell.back} back, where "
                                 f"{2 + number} is the most: use less.")
        names = [cell.name for cell in self.cells]
        repeated = [name for name in names if names.count(name) > 1]
        if repeated:
            raise InputError(f"Cell names must be unique, but a skeleton has {repeated[0]!r} twice: rename one.")

    def _check_blocks(self) -> None:
        seen: dict[tuple[Block, ...], str] = {}
        for name, pair in self.operations.items():
            _check_names(f"operation {name!r}", name)
            if len(pair) != 2:
                raise InputError(f"An operation must be two blocks, for stride 1 and 2, but {name!r} has {len(pair)}.")
            if pair in seen:
                raise InputError(f"Operations must differ, but {seen[pair]!r} and {name!r} of a skeleton are one: remove either.")
            seen[pair] = name
        for block in (*self.stem, self.head, *(block for pair in self.operations.values() for block in pair)):
            if not isinstance(block, Block) or isinstance(block, Resolution):
                raise InputError(f"A skeleton's stem, head and operations must be blocks, no resolutions, but one is {block!r}.")

    def operation(self, cell: Cell, name: str, source: int) -> Block:
        """The block of an operation that reads a state of a cell.

        Raises:
            InputError: There is no operation of this name.
        """
        if name not in self.operations:
            raise InputError(f"A cell's operation is one of {', '.join(self.operations)}, but got {name!r}: choose one of these.")
        strided = self.strided_operations and cell.stride > 1 and source < INPUTS
        return _of_width(self.operations[name][strided], cell.channels)

    def network(self, genotypes: Mapping[str, Genotype]) -> Network:
        """The network whose cells have these genotypes, by kind.

        Raises:
            InputError: A kind has no genotype, or the pieces do not fit.
        """
        net = NetworkBuilder(self.input_shape)

        def add(site: Site, states: tuple[Value, Value]) -> Value:
            return build_cell(net.scoped(site.cell.name), _of_kind(genotypes, site), states, partial(self.operation, site.cell))

        output, _ = self._assemble(net, add)
        return net.build(output)

    def sites(self, concats: Mapping[str, Sequence[int]], read: Mapping[str, Collection[int]] | None = None
              ) -> tuple[list[Site], tuple[Part, ...]]:
        """Where cells stand, whatever is in them, and the blocks outside of them: stem, what fits the inputs, head.

        Args:
            concats: Kind of cell to the states that make its output.
            read: Kind of cell to the inputs that it reads; None for both. One that is not read needs no block to fit it.

        Raises:
            InputError: A kind has none, or the pieces do not fit.
        """
        sites: list[Site] = []

        def stand_in(site: Site, states: tuple[Value, Value]) -> Value:
            sites.append(site)
            return Value(site.cell.name, Concat().infer(*map(site.shape_of, _of_kind(concats, site))))

        _, parts = self._assemble(NetworkBuilder(self.input_shape), stand_in)
        unread = self.unread(read) if read else ()
        return sites, tuple(part for part in parts if part.name not in unread)

    def unread(self, read: Mapping[str, Collection[int]]) -> set[str]:
        """Names that blocks have which fit an input that its cell does not read.

        Args:
            read: Kind of cell to the inputs that it reads.
        """
        return {f"{cell.name}/{name}" for cell in self.cells for state, name in enumerate(self.input_names)
                if state not in read[cell.kind]}

    def is_all_read(self, read: Mapping[str, Collection[int]]) -> bool:
        """Whether every cell and the whole stem reach the head.

        Args:
            read: Kind of cell to the inputs that it reads.
        """
        reached = {len(self.cells) + 1}  # as outputs are numbered: two of the stem, then the cells'
        for number, cell in reversed(list(enumerate(self.cells))):
            if number + 2 not in reached:
                return False
            back = {"current": 1, "previous": cell.back}
            reached.update(number + 2 - back[self.input_names[state]] for state in read[cell.kind] if state < INPUTS)
        return 1 in reached or (len(self.stem) == 1 and 0 in reached)

    @property
    def input_names(self) -> tuple[str, str]:
        """What states 0 and 1 are called."""
        return ("previous", "current") if self.previous_first else ("current", "previous")

    def _assemble(self, net: NetworkBuilder, add_cell: Callable[[Site, tuple[Value, Value]], Value]
                  ) -> tuple[Value, tuple[Part, ...]]:
        """Adds everything, the cells as `add_cell` does; returns the output, and the blocks around the cells."""
        parts: list[Part] = []

        def append(name: str, block: Block | None, x: Value) -> Value:
            if block is None:
                return x
            parts.append(Part(name, block, x.shape))
            try:
                return block.build(net.scoped(name), x)
            except InputError as error:
                raise InputError(f"{name!r} ({block.kind}) of a skeleton cannot take {x.shape}: {error}.") from None

        outputs = [net.input]
        for number, block in enumerate(self.stem, 1):
            outputs.append(append("stem" if len(self.stem) == 1 else f"stem{number}", block, outputs[-1]))
        outputs = (outputs if len(self.stem) > 1 else [*outputs, outputs[-1]])[-2:]
        for cell in self.cells:
            fit_current, fit_previous = self._fit_before_operations(cell, outputs[-1], outputs[-cell.back])
            current = append(f"{cell.name}/current", fit_current, outputs[-1])
            previous = append(f"{cell.name}/previous", fit_previous, outputs[-cell.back])
            states = (previous, current) if self.previous_first else (current, previous)
            site = self._site(cell, states)
            try:
                outputs.append(add_cell(site, states))
            except InputError as error:
                raise InputError(f"Cell {cell.name!r} cannot be made of {states[0].shape} and {states[1].shape}: "
                                 f"{str(error).rstrip('.')}.") from None
        return append("head", self.head, outputs[-1]), tuple(parts)

    def _site(self, cell: Cell, states: tuple[Value, Value]) -> Site:
        shapes = states[0].shape, states[1].shape
        if shapes[0][1:] != shapes[1][1:]:
            raise InputError(f"A cell's inputs must have one resolution, but {cell.name!r} gets {shapes[0]} and {shapes[1]}: "
                             "look less far back.")
        stride = cell.stride if self.strided_operations else 1
        return Site(cell, shapes, TensorShape(cell.channels, -(-shapes[0].height // stride), -(-shapes[0].width // stride)))

    def _fit_before_operations(self, cell: Cell, x: Value, previous: Value) -> tuple[Block | None, Block | None]:
        """Blocks that make states of a cell's input and of the output before it; None where that is one already."""
        project, reduce = PreactivatedConv(cell.channels), FactorizedReduction(cell.channels)
        differs = previous.shape[1:] != x.shape[1:]
        if not self.strided_operations and cell.stride > 1:
            if differs:
                raise InputError(f"A cell that reduces its inputs needs them of one resolution, but {cell.name!r} gets "
                                 f"{previous.shape} and {x.shape}.")
            return reduce, reduce
        if self.fitting == "resolution":
            return None, reduce if differs else None
        if self.fitting == "always":
            return project, reduce if differs else project
        needed = previous.name != x.name and previous.channels != cell.channels  # the first cell reads the stem as it is
        return project, reduce if differs else project if needed else None

    def to_dict(self) -> dict[str, Any]:
        return {
            "input_shape": list(self.input_shape), "stem": [block.to_dict() for block in self.stem],
            "cells": [dataclasses.asdict(cell) for cell in self.cells], "head": self.head.to_dict(),
            "operations": {name: [block.to_dict() for block in pair] for name, pair in self.operations.items()},
            "previous_first": self.previous_first, "fitting": self.fitting, "strided_operations": self.strided_operations}


@dataclass(frozen=True)
class Pick:
    """An option of a cell.

    Attributes:
        terms: Operations that it adds to a state, each with the state that it reads; None reads the next of the sources
            that an earlier decision picked.
        sources: States that it picks for the decisions that follow.
    """

    terms: tuple[tuple[str, int | None], ...] = ()
    sources: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        try:
            object.__setattr__(self, "terms", tuple((name, source) for name, source in self.terms))
            object.__setattr__(self, "sources", tuple(self.sources))
        except (TypeError, ValueError):
            raise InputError("An option of a cell has terms (pairs of operation and state) and sources (states), but one has "
                             f"{self.terms!r} and {self.sources!r}.") from None

    @property
    def left(self) -> int:
        """How many sources it picks beyond those that its own terms use."""
        return len(self.sources) - sum(source is None for _, source in self.terms)


@dataclass(frozen=True)
class CellDecision:
    """A choice in a kind of cell.

    Attributes:
        name: Unique within the space.
        state: The state of the cell that it helps to make, from 2.
        options: Option name to what it means.
    """

    name: str
    state: int
    options: Mapping[str, Pick] = field(hash=False)

    def __post_init__(self) -> None:
        if not isinstance(self.options, Mapping) or not self.options:
            raise InputError(f"A decision needs at least one option, but {self.name!r} has none: add one.")
        object.__setattr__(self, "options", dict(self.options))
        _check_names(f"decision {self.name!r}", self.name, *self.options)
        if not _is_whole(self.state, INPUTS, 1 << 16):
            raise InputError(f"A decision helps to make a state from {INPUTS} on, but {self.name!r} has state {self.state!r}.")
        seen: dict[Pick, str] = {}
        for option, pick in self.options.items():
            self._check_pick(option, pick)
            if pick in seen:
                raise InputError(f"Options must differ, but {seen[pick]!r} and {option!r} of decision {self.name!r} mean the "
                                 "same: remove one.")
            seen[pick] = option

    def _check_pick(self, option: str, pick: Pick) -> None:
        where = f"decision {self.name!r}, option {option!r}"
        if not isinstance(pick, Pick):
            raise InputError(f"An option of a cell must be a Pick, but {where}, is {pick!r}.")
        for operation, source in pick.terms:
            if not isinstance(operation, str):
                raise InputError(f"An operation must be named, but {where}, has {operation!r}.")
            if source is not None:
                self._check_source(where, source)
        for source in pick.sources:
            self._check_source(where, source)
        first = next(iter(self.options.values()))
        if pick.left != first.left:
            raise InputError(f"Options must leave equally many sources to those that follow, but {where}, leaves {pick.left} and "
                             f"the first {first.left}.")

    def _check_source(self, where: str, source: Any) -> None:
        if not _is_whole(source, 0, self.state):
            raise InputError(f"A state reads states before it, 0 to {self.state - 1} for state {self.state}, but {where}, reads "
                             f"{source!r}.")


@dataclass(frozen=True)
class CellKind:
    """What is searched in one kind of cell.

    Attributes:
        decisions: In the order of the states that they make; a state's terms are those of its decisions together.
        concat: The states that make the output; None for those that the cell itself does not read.

    Raises:
        InputError: Some choice would leave a state without operations, or an operation without a source.
    """

    decisions: tuple[CellDecision, ...]
    concat: tuple[int, ...] | None

    def __post_init__(self) -> None:
        if not self.decisions or not all(isinstance(decision, CellDecision) for decision in self.decisions):
            raise InputError(f"A kind of cell needs at least one decision, all of a cell, but has {self.decisions!r}.")
        object.__setattr__(self, "decisions", tuple(self.decisions))
        self._check_states()
        self._check_sources()
        if self.concat is None:
            return
        last = self.decisions[-1].state
        if not isinstance(self.concat, list | tuple) or not self.concat or not all(
                _is_whole(state, 0, last + 1) for state in self.concat):
            raise InputError(f"A cell concatenates states that it has, 0 to {last}, but {self.concat!r} is not a list of these.")
        object.__setattr__(self, "concat", tuple(self.concat))

    def _check_states(self) -> None:
        """Every state comes in its turn, and has a term whatever is chosen."""
        states = [decision.state for decision in self.decisions]
        if states != sorted(states) or set(states) != set(range(INPUTS, states[-1] + 1)):
            raise InputError(f"A cell's decisions must make the states from {INPUTS} on in order, but {self.decisions[0].name!r} "
                             f"and those after it make {', '.join(map(str, states))}.")
        for state in dict.fromkeys(states):
            without = [[option for option, pick in decision.options.items() if not pick.terms]
                       for decision in self.decisions if decision.state == state]
            if all(without):
                name = next(decision.name for decision in self.decisions if decision.state == state)
                raise InputError(f"Every state needs an operation, but decision {name!r}, option {without[0][0]!r}, can leave "
                                 f"state {state} without one: add one.")

    def _check_sources(self) -> None:
        """No operation lacks a source, and no source is picked in vain, whatever is chosen."""
        waiting = 0
        for decision in self.decisions:
            for option, pick in decision.options.items():
                if waiting + pick.left < 0:
                    raise InputError(f"An operation must have a state to read, but decision {decision.name!r}, option "
                                     f"{option!r}, takes more sources than were picked: pick them before, or name the state.")
            waiting += next(iter(decision.options.values())).left
        if waiting:
            raise InputError(f"A picked source must be read, but {waiting} are left after decision {self.decisions[-1].name!r}.")

    def genotype(self, choices: Mapping[str, str]) -> Genotype:
        """The cell that the choices, by decision, make."""
        terms = self.terms([decision.options[choices[decision.name]] for decision in self.decisions])
        return Genotype(terms, self.passed_on(terms))

    def terms(self, picks: Iterable[Pick]) -> tuple[tuple[Term, ...], ...]:
        """What each state from 2 on sums where these are picked, one for each decision."""
        states: dict[int, list[Term]] = {}
        sources: list[int] = []
        for decision, pick in zip(self.decisions, picks, strict=True):
            sources += pick.sources
            states.setdefault(decision.state, []).extend(
                (name, sources.pop(0) if source is None else source) for name, source in pick.terms)
        return tuple(map(tuple, states.values()))

    def passed_on(self, terms: Sequence[Iterable[Term]]) -> tuple[int, ...]:
        """The states that make the output of a cell whose states from 2 on sum these."""
        if self.concat is not None:
            return self.concat
        read = {source for state in terms for _, source in state}
        return tuple(state for state in range(INPUTS, INPUTS + len(terms)) if state not in read)

    @cached_property
    def possible_terms(self) -> tuple[tuple[Term, ...], ...]:
        """All that some choice makes each state from 2 on sum."""
        found: dict[int, dict[Term, None]] = {}  # in order of appearance
        waiting: list[set[int]] = []  # what each of the picked sources may be: options are chosen independently
        for decision in self.decisions:
            onward: list[set[int]] = []
            for pick in decision.options.values():
                queue = [*waiting, *({source} for source in pick.sources)]
                for name, source in pick.terms:
                    may_be = sorted(queue.pop(0)) if source is None else [source]
                    found.setdefault(decision.state, {}).update(dict.fromkeys((name, each) for each in may_be))
                onward = [one | other for one, other in zip(queue, onward or [set[int]()] * len(queue), strict=True)]
            waiting = onward
        return tuple(map(tuple, found.values()))


class _Finished(NamedTuple):
    """What a kind of cell does to what is around it.

    Attributes:
        passed_on: How many states it passes on.
        inputs: Those that it reads.
    """

    passed_on: int
    inputs: frozenset[int]


class _Progress(NamedTuple):
    """A state of the trellis: all that later costs depend on.

    Attributes:
        finished: The kinds of cell that are decided.
        read: States of the present kind that are read already, of those that it does not pass on anyway.
        waiting: Sources that were picked and not used yet, each as the first one that costs the same.
    """

    finished: tuple[_Finished, ...] = ()
    read: frozenset[int] = frozenset()
    waiting: tuple[int, ...] = ()

    def __str__(self) -> str:
        return "-".join(map(str, self.waiting)) or "start"


@dataclass(frozen=True)
class CellSpace(Space):
    """A space of cells.

    Attributes:
        name: Shown to people and stored in files.
        skeleton: What the cells stand in.
        kinds: Kind of cell to what is searched in it.
        description: One line for listings.

    Raises:
        InputError: A kind of cell that is not searched, a name used twice, an unknown operation, or pieces that do not fit.
    """

    name: str
    skeleton: Skeleton
    kinds: Mapping[str, CellKind] = field(hash=False)
    description: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "kinds", dict(self.kinds))
        _check_names(f"space {self.name!r}", self.name)
        if not all(isinstance(kind, CellKind) for kind in self.kinds.values()):
            raise InputError(f"A space of cells maps every kind of cell to a CellKind, but {self.name!r} has {self.kinds!r}.")
        used = {cell.kind for cell in self.skeleton.cells}
        if used != set(self.kinds):
            raise InputError(f"A space of cells decides on the kinds that its skeleton has, {', '.join(sorted(used))}, but "
                             f"{self.name!r} decides on {', '.join(map(str, self.kinds)) or 'none'}.")
        names = [AROUND, *(decision.name for decision in self.decisions)]
        repeated = [name for name in names if names.count(name) > 1]
        if repeated:
            raise InputError(f"Decision names must be unique, and none {AROUND!r}, but space {self.name!r} has {repeated[-1]!r} "
                             "twice: rename one.")
        if self.skeleton.fitting == "resolution" and any(kind.concat is None for kind in self.kinds.values()):
            raise InputError("Cells that pass on the states that they do not read vary in width, so their inputs must be brought "
                             f"to one, but space {self.name!r} fits only the resolution: name the states, or fit otherwise.")
        _ = self.steps  # checks every shape

    @property
    def input_shape(self) -> TensorShape:  # type: ignore[override]
        return self.skeleton.input_shape

    @cached_property
    def decisions(self) -> tuple[CellDecision, ...]:
        """What is chosen, kind by kind."""
        return tuple(decision for kind in self.kinds.values() for decision in kind.decisions)

    @cached_property
    def hash(self) -> str:
        """SHA-256 of skeleton and decisions (not of name and description)."""
        content = {key: value for key, value in self.to_dict().items() if key in ("skeleton", "kinds")}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def genotypes(self, architecture: Architecture) -> dict[str, Genotype]:
        """The cells of an architecture, by kind."""
        choices = self.check(architecture).choices
        return {name: kind.genotype(choices) for name, kind in self.kinds.items()}

    def network(self, architecture: Architecture) -> Network:
        """The standalone network of an architecture; node names start with the cell's name."""
        return self.skeleton.network(self.genotypes(architecture))

    @cached_property
    def steps(self) -> tuple[Step, ...]:
        """One step for every decision, and `skeleton`: the fixed blocks around the cells.

        No way leads through cells that would be computed in vain, which no runtime does: every state reaches its cell's output,
        and every cell the head.
        """
        steps = []
        states = [_Progress()]
        for name, kind in self.kinds.items():
            for decision in kind.decisions:
                found: dict[_Progress, int] = {}
                edges = []
                parts_of = lru_cache(None)(partial(self._parts, name, decision))  # many ways add the same
                for number, state in enumerate(states):
                    for index, (option, pick) in enumerate(decision.options.items()):
                        onward, terms = self._follow(name, state, pick, is_last=decision is kind.decisions[-1])
                        if onward is not None:
                            target = found.setdefault(onward, len(found))
                            edges.append(Edge(number, index, target, parts_of(option, terms)))
                steps.append(Step(decision.name, True, tuple(decision.options), tuple(states), tuple(found), tuple(edges)))
                states = list(found)
        around = tuple(Edge(number, 0, 0, self._around(state.finished)[1]) for number, state in enumerate(states)
                       if self.skeleton.is_all_read(self._read(state.finished)))
        steps.append(Step(AROUND, False, (AROUND,), tuple(states), (self._output_shape,), around))
        return without_dead_ends(self.name, steps, "it always leaves a state or a cell that nothing reads, so remove it or let "
                                 "another option read that")

    def _follow(self, name: str, state: _Progress, pick: Pick, is_last: bool
                ) -> tuple[_Progress | None, tuple[Term, ...]]:
        """Where an option leads from a state, if anywhere, and the operations that it adds, each with a source that costs the
        same."""
        kind = self.kinds[name]
        waiting = [*state.waiting, *(self._representative(name, source) for source in pick.sources)]
        terms = tuple((operation, waiting.pop(0) if source is None else source) for operation, source in pick.terms)
        concat = kind.concat or ()
        read = state.read.union(pick.sources, (source for _, source in pick.terms if source is not None)).difference(concat)
        if not is_last:
            return _Progress(state.finished, read, tuple(waiting)), terms
        loose = {decision.state for decision in kind.decisions}.difference(read, concat)
        if concat and loose:
            return None, terms
        inputs = read.union(concat).intersection(range(INPUTS))
        return _Progress((*state.finished, _Finished(len(concat or loose), inputs))), terms

    def _around(self, finished: Sequence[_Finished]) -> tuple[list[Site], tuple[Part, ...]]:
        """Where the cells stand, and the blocks around them."""
        concats = {name: kind.concat or range(INPUTS, INPUTS + done.passed_on)
                   for (name, kind), done in zip(self.kinds.items(), finished, strict=True)}
        return self.skeleton.sites(concats, self._read(finished))

    def _read(self, finished: Sequence[_Finished]) -> dict[str, frozenset[int]]:
        return {name: done.inputs for name, done in zip(self.kinds, finished, strict=True)}

    @cached_property
    def _any_around(self) -> tuple[list[Site], tuple[Part, ...]]:
        return self._around((_Finished(1, frozenset(range(INPUTS))),) * len(self.kinds))  # states' shapes do not depend on it

    @cached_property
    def _sites(self) -> dict[str, list[Site]]:
        sites, _ = self._any_around
        return {name: [site for site in sites if site.cell.kind == name] for name in self.kinds}

    @cached_property
    def _output_shape(self) -> TensorShape:
        _, parts = self._any_around
        shape = parts[-1].network.output_shape
        if shape[1:] != (1, 1):
            raise InputError(f"A space of cells must end in one number for each class, but the head of {self.name!r} makes "
                             f"{shape}: use a cell_head.")
        return shape

    def _representative(self, name: str, source: int) -> int:
        """The first state of a kind of cell that is as costly to read as this one."""
        def reading(source: int) -> list[tuple[TensorShape, bool]]:
            return [(site.shape_of(source), source < INPUTS and site.cell.stride > 1) for site in self._sites[name]]

        return next(other for other in range(source + 1) if reading(other) == reading(source))

    def _parts(self, name: str, decision: CellDecision, option: str, terms: Sequence[Term]) -> tuple[Part, ...]:
        """What an option adds to the network: an operation in every cell of the kind."""
        parts = []
        for site in self._sites[name]:
            for operation, source in terms:
                shape = site.shape_of(source)
                where = f"Space {self.name!r}, decision {decision.name!r}, option {option!r}, in {site.cell.name!r}"
                if operation not in self.skeleton.operations:
                    raise InputError(f"{where}, must name one of {', '.join(self.skeleton.operations)}, but names {operation!r}.")
                block = self.skeleton.operation(site.cell, operation, source)
                try:
                    output = block.output_shape(shape)
                except InputError as error:
                    raise InputError(f"{where}, cannot take the shape {shape} that reaches it: "
                                     f"{str(error).split(': ', 1)[-1]}.") from None
                if output != site.inner:
                    raise InputError(f"{where}, must make {site.inner} of {shape}, as the cell's other states are, but makes "
                                     f"{output}.")
                parts.append(Part(f"{site.cell.name}/state{decision.state}_{operation}", block, shape))
        return tuple(parts)

    @cached_property
    def classes(self) -> int:
        """Width of what every network gives: the number of classes."""
        return self._output_shape.channels

    def to_dict(self) -> dict[str, Any]:
        kinds = {name: {"concat": None if kind.concat is None else list(kind.concat),
                        "decisions": [{"name": decision.name, "state": decision.state, "options": {
                            option: {"terms": [list(term) for term in pick.terms], "sources": list(pick.sources)}
                            for option, pick in decision.options.items()}} for decision in kind.decisions]}
                 for name, kind in self.kinds.items()}
        return {"schema": SCHEMA, "name": self.name, "skeleton": self.skeleton.to_dict(), "kinds": kinds,
                "description": self.description}


def cell_space_from_dict(document: Mapping[str, Any]) -> CellSpace:
    """Reads the form that `CellSpace.to_dict` writes.

    Raises:
        InputError: The document is not a cell space, or the space is not valid.
    """
    try:
        about = document["skeleton"]
        skeleton = Skeleton(
            about["input_shape"], tuple(map(block_from_dict, about["stem"])), tuple(Cell(**cell) for cell in about["cells"]),
            block_from_dict(about["head"]),
            {name: (block_from_dict(plain), block_from_dict(strided)) for name, (plain, strided) in about["operations"].items()},
            about["previous_first"], about["fitting"], about["strided_operations"])
        kinds = {name: CellKind(tuple(map(_decision_from_dict, kind["decisions"])), kind["concat"])
                 for name, kind in document["kinds"].items()}
        return CellSpace(document["name"], skeleton, kinds, str(document.get("description", "")))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"A cell space must have the form that hwnas writes, but this one fails with {type(error).__name__} "
                         f"({error}): use the file as it was written.") from None


def _decision_from_dict(document: Mapping[str, Any]) -> CellDecision:
    return CellDecision(document["name"], document["state"], {
        option: Pick(pick["terms"], pick["sources"]) for option, pick in document["options"].items()})


def _of_kind(table: Mapping[str, Item], site: Site) -> Item:
    if site.cell.kind not in table:
        raise InputError(f"every kind of cell needs a genotype, but {site.cell.kind!r} has none")
    return table[site.cell.kind]


def _check_names(where: str, *names: Any) -> None:
    for name in names:
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise InputError(f"A name must be letters, digits, '_', '-' or '+', but {where} has {name!r}: rename it.")


def _is_whole(value: Any, low: int, high: int) -> bool:
    """Whether it is a whole number from `low` to below `high`."""
    return isinstance(value, int) and not isinstance(value, bool) and low <= value < high


@lru_cache(maxsize=4096)
def _of_width(block: Block, channels: int) -> Block:
    has_width = any(one.name == "out_channels" for one in dataclasses.fields(block))
    return dataclasses.replace(block, out_channels=channels) if has_width else block  # type: ignore[call-arg]


def chosen_pairs(kind: str, states: range, operations: Sequence[str], pairs: Callable[[int], Sequence[tuple[int, int]]]
                 ) -> tuple[CellDecision, ...]:
    """Decisions of cells whose states each sum two operations: the two that it reads, then an operation on each.

    Args:
        kind: Prefixes the names: `normal_2_inputs`, `normal_2_first`, `normal_2_second`.
        states: Those that the cell makes.
        operations: What may be done with each of the two.
        pairs: From a state to the pairs that it may read; one pair alone is no decision.
    """
    decisions = []
    for state in states:
        sources = pairs(state)
        first = second = {name: Pick(terms=((name, None),)) for name in operations}
        if len(sources) > 1:
            decisions.append(CellDecision(f"{kind}_{state}_inputs", state, {
                f"{one}-{other}": Pick(sources=(one, other)) for one, other in sources}))
        else:
            first = {name: Pick(pick.terms, sources[0]) for name, pick in first.items()}
        decisions += [CellDecision(f"{kind}_{state}_first", state, first), CellDecision(f"{kind}_{state}_second", state, second)]
    return tuple(decisions)


def choices_of_pairs(genotypes: Mapping[str, Genotype]) -> dict[str, str]:
    """What `chosen_pairs` calls the choices that make these cells, by kind.

    Raises:
        InputError: A state does not sum two operations.
    """
    choices: dict[str, str] = {}
    for kind, genotype in genotypes.items():
        for state, terms in enumerate(genotype.nodes, INPUTS):
            if len(terms) != 2:
                raise InputError(f"Every state must sum two operations, but state {state} of cell {kind!r} sums {len(terms)}.")
            (first, one), (second, other) = terms
            name = f"{kind}_{state}"
            choices |= {f"{name}_inputs": f"{one}-{other}", f"{name}_first": first, f"{name}_second": second}
    return choices
