"""Our own MuJoCo tabletop: a gantry gripper over a table, three pick-and-place tasks, and their visually shifted "real twins"."""
