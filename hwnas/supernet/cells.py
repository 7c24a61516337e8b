"""The supernet of a space of cells: one set of weights for every operation that any architecture has on any state of a cell.

What weights are shared by follows "Understanding and Simplifying One-Shot Architecture Search" (Bender et al., ICML 2018) and
DARTS (Liu et al., arXiv 1806.09055, sec. 2.2): an operation's weights belong to the cell, the state it adds to and the state it
reads, whatever else is in the cell.

Cells that pass on the states that nothing in them reads vary in width (NASNet). What reads such a cell has weights for every
state that it could pass on, and gets zeros for those that it does not: as if it had the columns of its weights alone that
belong to the others, so that a state meets the same weights wherever it is passed on.
"""

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property, reduce
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from hwnas.errors import InputError
from hwnas.ir.architecture import Architecture
from hwnas.ir.block import Part
from hwnas.ir.cells import Cell, CellSpace, Pick, Site, Term
from hwnas.ir.genotype import INPUTS
from hwnas.ir.layers import Activation, Conv, Dropout, GlobalAveragePool, Linear, Pad, Pool, Resize
from hwnas.ir.network import INPUT
from hwnas.ir.shape import TensorShape
from hwnas.lower.torch import NetworkModule, get_weights, to_torch
from hwnas.supernet.streams import stream_seed
from hwnas.supernet.supernet import Path, Supernet

_BLOCK = "block/"  # what `block_network` calls its only layer
_KEEPS_CHANNELS = Pool | GlobalAveragePool | Dropout | Pad | Resize
_ZERO_AT_ZERO = ("relu", "relu6", "hardswish", "silu")


class WeighedTerm(NamedTuple):
    """How a term takes part in a mixture.

    Attributes:
        weight: What its output is multiplied by: a scalar tensor, or a number.
        is_frozen: Its output counts as a constant: the weight gets a gradient, what computed it does not.
        is_normalised: Its output first gets mean 0 and variance 1 over the batch, as if a batch norm without weights followed.
    """

    weight: Tensor | float = 1.0
    is_frozen: bool = False
    is_normalised: bool = False


CellMixture = Mapping[str, Sequence[Mapping[Term, WeighedTerm]]]
"""For every kind of cell and state from 2 on, the terms that the state sums; the others are not computed."""


class CellSupernet(Supernet):
    """Weights of every term that an architecture of the space can have, in every cell, and of the blocks around the cells.

    In `state_dict` a term's weights are `{cell}/state{n}/{operation}@{source}.block/...`; those around the cells are
    `stem.block/...`, `{cell}/current.block/...`, `{cell}/previous.block/...` and `head.block/...`. Operations without layers
    have none.
    """

    space: CellSpace

    def __init__(self, space: CellSpace, seed: int = 0) -> None:
        """Builds every block with initial weights drawn from `seed`.

        Raises:
            InputError: The head cannot read a varying number of states.
        """
        super().__init__(space)
        self._layout = _Layout(space)
        for part in self._layout.around.values():
            self._add(part.name, part, seed)
        for site in self._layout.sites:
            for number, terms in enumerate(space.kinds[site.cell.kind].possible_terms, INPUTS):
                for operation, source in terms:
                    block = space.skeleton.operation(site.cell, operation, source)
                    name = term_name(site.cell, number, (operation, source))
                    self._add(name, Part(name, block, site.shape_of(source)), seed)

    def _add(self, name: str, part: Part, seed: int) -> None:
        if part.network.nodes:
            self.add_module(name, to_torch(part.network, seed=stream_seed(seed, name, 0)))

    def forward(self, images: Tensor, path: Path) -> Tensor:
        return self._compute(images, self.mixture_of(path))

    def mix(self, images: Tensor, mixture: CellMixture) -> Tensor:
        """Computes many networks at once: each state of a cell is the weighed sum of its terms.

        A state without terms is zero. A cell without a fixed output passes on the states that no term of the mixture reads.

        Args:
            images: Normalised images, (N, C, H, W).
            mixture: Which terms, and their weights.

        Returns:
            What the networks return: logits (N, classes).

        Raises:
            InputError: A term that no architecture of the space has.
        """
        for name, kind in self.space.kinds.items():
            states = mixture.get(name, ())
            if len(states) != len(kind.possible_terms) or any(
                    not terms.keys() <= possible for terms, possible in zip(states, self._possible[name], strict=True)):
                raise InputError(f"A mixture has, for every state of every kind of cell, terms that some architecture has, but "
                                 f"that of {name!r} is {[list(terms) for terms in states]}.")
        return self._compute(images, mixture)

    def mixture_of(self, path: Path) -> CellMixture:
        """One network as a mixture: its terms alone; one that a state has twice has the weight 2.

        Raises:
            InputError: The path is not of this space.
        """
        indices = iter(self.indices(path))
        mixture = {}
        for name, picks in self._picks.items():
            terms = self.space.kinds[name].terms([options[next(indices)] for options in picks])
            mixture[name] = [{term: WeighedTerm(float(count)) for term, count in Counter(state).items()} for state in terms]
        return mixture

    def _compute(self, images: Tensor, mixture: CellMixture) -> Tensor:
        layout = self._layout
        passed_on = {name: kind.passed_on(mixture[name]) for name, kind in self.space.kinds.items()}
        present = layout.present(passed_on)
        outputs = [_Output([images])]
        for name in layout.stem:
            outputs.append(_Output([self._read(name, outputs[-1], present)]))
        outputs = [outputs[-2] if len(layout.stem) > 1 else outputs[-1], outputs[-1]]
        order = self.space.skeleton.input_names
        for number, site in enumerate(layout.sites):
            cell = site.cell
            kept, terms = passed_on[cell.kind], mixture[cell.kind]
            read = _read_by(kept, terms)
            inputs = {"current": outputs[number + 1], "previous": outputs[number + 2 - cell.back]}
            states = {state: self._read(f"{cell.name}/{name}", inputs[name], present)
                      for state, name in enumerate(order) if state in read}
            for state, summed in enumerate(terms, INPUTS):
                if state in read:
                    computed = [self._term(term_name(cell, state, term), states[term[1]], how) for term, how in summed.items()]
                    states[state] = reduce(torch.add, computed) if computed else images.new_zeros(len(images), *site.inner)
            outputs.append(_Output([states[state] for state in kept], layout.slots(cell), kept))
        return self._read("head", outputs[-1], present)

    def _read(self, name: str, output: "_Output", present: frozenset[str]) -> Tensor:
        """What a block around the cells makes of an output; the output, where there is no such block."""
        module = self._modules.get(name) if name in present else None
        return output.plain if module is None else module(output.wide)

    def _term(self, name: str, x: Tensor, how: WeighedTerm) -> Tensor:
        module = self._modules.get(name)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not how.is_frozen):
            if module is not None:
                x = module(x)
            if how.is_normalised:
                x = functional.batch_norm(x, None, None, training=True)
        x = x.detach() if how.is_frozen else x
        return x if isinstance(how.weight, float) and how.weight == 1.0 else x * how.weight

    @cached_property
    def _possible(self) -> dict[str, list[frozenset[Term]]]:
        return {name: list(map(frozenset, kind.possible_terms)) for name, kind in self.space.kinds.items()}

    @cached_property
    def _picks(self) -> dict[str, list[list[Pick]]]:
        return {name: [list(decision.options.values()) for decision in kind.decisions]
                for name, kind in self.space.kinds.items()}

    def weights_of(self, architecture: Architecture) -> dict[str, NDArray[np.float32]]:
        genotypes = self.space.genotypes(architecture)
        passed_on = {name: genotype.concat for name, genotype in genotypes.items()}
        weights: dict[str, NDArray[np.float32]] = {}
        unread = self.space.skeleton.unread({name: _read_by(genotype.concat, genotype.nodes)
                                             for name, genotype in genotypes.items()})
        for name in sorted(self._layout.present(passed_on) - unread):
            weights |= self._weights_around(self._layout.around[name], passed_on)
        for site in self._layout.sites:
            cell = site.cell
            for number, node in enumerate(genotypes[cell.kind].nodes, INPUTS):
                for side, term in enumerate(node, 1):
                    weights |= self._weights(term_name(cell, number, term), f"{cell.name}/state{number}_{side}_{term[0]}")
        return weights

    def _weights(self, name: str, place: str) -> dict[str, NDArray[np.float32]]:
        module = self._modules.get(name)
        arrays = get_weights(module) if isinstance(module, NetworkModule) else {}
        return {f"{place}/{key.removeprefix(_BLOCK)}": array for key, array in arrays.items()}

    def _weights_around(self, part: Part, passed_on: Mapping[str, Sequence[int]]) -> dict[str, NDArray[np.float32]]:
        """The weights of a block around the cells, of the columns alone that belong to states that it gets."""
        weights = self._weights(part.name, part.name)
        cell = self._layout.read_by.get(part.name)
        if cell is None or not (slots := self._layout.slots(cell)):
            return weights
        columns = np.concatenate([np.arange(cell.channels) + slots.index(state) * cell.channels
                                  for state in passed_on[cell.kind]])
        for node in _input_readers(part):
            key = f"{part.name}/{node.removeprefix(_BLOCK)}.weight"
            weights[key] = weights[key][:, columns]
        return weights


def term_name(cell: Cell, state: int, term: Term) -> str:
    """What the module of a term is called."""
    return f"{cell.name}/state{state}/{term[0]}@{term[1]}"


def _read_by(passed_on: Sequence[int], terms: Sequence[Iterable[Term]]) -> set[int]:
    """The states that a cell's output depends on; a plain network would not compute the others either."""
    read = set(passed_on)
    for state in range(INPUTS + len(terms) - 1, INPUTS - 1, -1):
        if state in read:
            read.update(source for _, source in terms[state - INPUTS])
    return read


class _Output:
    """What a cell passes on, or the stem.

    Attributes:
        plain: The states, one after another; (N, C, H, W).
        wide: With zeros for those of its states that it does not pass on.
    """

    def __init__(self, states: Sequence[Tensor], slots: Sequence[int] = (), kept: Sequence[int] = ()) -> None:
        self._states, self._slots, self._kept = states, slots, kept

    @cached_property
    def plain(self) -> Tensor:
        return torch.cat(list(self._states), 1) if len(self._states) > 1 else self._states[0]

    @cached_property
    def wide(self) -> Tensor:
        if len(self._slots) <= len(self._kept):
            return self.plain
        kept = dict(zip(self._kept, self._states, strict=True))
        zeros = torch.zeros_like(self._states[0])
        return torch.cat([kept.get(slot, zeros) for slot in self._slots], 1)


class _Layout:
    """Where cells stand, and the blocks around them.

    Attributes:
        sites: The cells, from input to output.
        stem: Names of the stem's blocks.
        around: Every block around the cells that some network has, at its widest input.
        read_by: The cell whose output a block around the cells reads; none for the stem's and what reads the stem.
    """

    def __init__(self, space: CellSpace) -> None:
        self._space = space
        self._varying = [name for name, kind in space.kinds.items() if kind.concat is None]
        cells = space.skeleton.cells
        self.read_by: dict[str, Cell] = {"head": cells[-1]}
        for number, cell in enumerate(cells):
            if number >= 1:
                self.read_by[f"{cell.name}/current"] = cells[number - 1]
            if number >= cell.back:
                self.read_by[f"{cell.name}/previous"] = cells[number - cell.back]
        self.around: dict[str, Part] = {}
        self._present: dict[tuple[int, ...], frozenset[str]] = {}
        for counts in itertools.product(*(range(1, len(self._states(name)) + 1) for name in self._varying)):
            self.sites, parts = self._assemble(dict(zip(self._varying, counts, strict=True)))
            self._present[counts] = frozenset(part.name for part in parts)
            self.around |= {part.name: self._widest(part) for part in parts}
        blocks = len(space.skeleton.stem)
        self.stem = ["stem"] if blocks == 1 else [f"stem{number}" for number in range(1, blocks + 1)]

    def _assemble(self, counts: Mapping[str, int]) -> tuple[list[Site], tuple[Part, ...]]:
        return self._space.skeleton.sites({name: kind.concat or range(INPUTS, INPUTS + counts[name])
                                           for name, kind in self._space.kinds.items()})

    def _states(self, kind: str) -> range:
        return range(INPUTS, INPUTS + len(self._space.kinds[kind].possible_terms))

    def _widest(self, part: Part) -> Part:
        cell = self.read_by.get(part.name)
        if cell is None or not (slots := self.slots(cell)):
            return part
        wide = Part(part.name, part.block, TensorShape(len(slots) * cell.channels, *part.input_shape[1:]))
        _input_readers(wide)  # refuses what cannot read a varying width
        return wide

    def slots(self, cell: Cell) -> range:
        """The states that a cell could pass on, in the order in which what reads it has weights for them; none where all
        networks pass on the same."""
        return self._states(cell.kind) if cell.kind in self._varying else range(0)

    def present(self, passed_on: Mapping[str, Sequence[int]]) -> frozenset[str]:
        """Which blocks around the cells a network has: an output that has a cell's width already needs none."""
        return self._present[tuple(len(passed_on[name]) for name in self._varying)]


def _input_readers(part: Part) -> list[str]:
    """The layers with a column of weights for each channel of a block's input.

    Raises:
        InputError: Something else reads the input, so that a channel of zeros would not be as good as none.
    """
    plain = {INPUT}  # what is the input, channel by channel, and zero where that is
    readers = []
    for node in part.network.nodes:
        if plain.isdisjoint(node.inputs):
            continue
        layer = node.layer
        if isinstance(layer, _KEEPS_CHANNELS) or (isinstance(layer, Activation) and layer.function in _ZERO_AT_ZERO):
            plain.add(node.name)
        elif isinstance(layer, Linear) or (isinstance(layer, Conv) and layer.groups == 1):
            readers.append(node.name)
        else:
            raise InputError(f"Where cells pass on the states that they do not read, a convolution or a linear layer must read "
                             f"them, but in {part.name!r} ({part.block.kind}) it is {layer!r}: use a cell_head, or name the "
                             "states that are passed on.")
    return readers
