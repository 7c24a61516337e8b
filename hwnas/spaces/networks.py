"""Every reference network by name. A new family is one file with a `NETWORKS` tuple and one line here."""

from difflib import get_close_matches

from hwnas.errors import InputError
from hwnas.spaces import darts, fbnet, mnasnet, mobilenet, nasnet, pnasnet, proxyless, resnet, shufflenet, spos
from hwnas.spaces.reference import ReferenceNetwork

NETWORKS: dict[str, ReferenceNetwork] = {
    network.name: network
    for family in (mobilenet, shufflenet, mnasnet, fbnet, proxyless, nasnet, pnasnet, darts, spos, resnet)
    for network in family.NETWORKS}


def load_network(name: str) -> ReferenceNetwork:
    """Finds a reference network.

    Raises:
        InputError: There is none of this name.
    """
    if name not in NETWORKS:
        near = get_close_matches(name, NETWORKS, n=4, cutoff=0.5)
        meant = f"did you mean {' or '.join(near)}" if near else "'hwnas networks' lists them"
        raise InputError(f"There is no reference network {name!r}: {meant}.")
    return NETWORKS[name]
