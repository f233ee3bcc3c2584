"""Pure functions on tensors: cameras, rotations and panoramas. World axes: x right, y down, z forward."""
