"""The intermediate representation: shapes, primitive layers, blocks, networks, spaces, the trellis, architectures."""
