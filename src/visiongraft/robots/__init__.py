"""The robot floor: simulators, demonstrations, points from a simulator, roll-outs, the policy protocol and its server."""
