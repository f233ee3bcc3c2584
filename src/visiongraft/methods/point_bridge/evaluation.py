"""Roll-outs of a policy, and its server: what ``evaluate`` and ``serve`` do."""

from typing import TYPE_CHECKING, Any

from visiongraft.methods.point_bridge.commands import EvaluateOptions, ServeOptions
from visiongraft.methods.point_bridge.data_files import pairs_of
from visiongraft.methods.point_bridge.observing import eyes_by_name
from visiongraft.methods.point_bridge.policy import PointBridgePolicy
from visiongraft.methods.point_bridge.policy_files import PolicyCard
from visiongraft.methods.point_bridge.small import load_policy
from visiongraft.robots.extras import require

if TYPE_CHECKING:
    from visiongraft.robots.hosting import Backend


def evaluate_policy(options: EvaluateOptions) -> int:
    """Runs ``evaluate``; prints the table."""
    require("mujoco")
    from visiongraft.robots.rollout_episode import Recording
    from visiongraft.robots.rollouts import EvaluationTask, evaluate

    if options.video and options.output is None:
        raise ValueError("Videos need a folder; give --output.")
    policy, tasks, observed, identity = _policy(options)
    eyes = eyes_by_name(
        options.perception or _default_perception(observed, options.twin),
        size=options.image_size or _trained_size(policy, observed),
        points=options.points,
        camera=options.camera,
        seed=options.seed,
    )
    extra: dict[str, Any] = {"twin": True} if options.twin else {}
    extra |= {} if options.distractors is None else {"distractors": options.distractors}
    extra |= {"camera_error": options.camera_error} if options.camera_error else {}
    planned = [
        EvaluationTask(task, extra | ({} if pair is None else {"pair": pair})) for task in tasks for pair in pairs_of(task, options.pairs)
    ]
    result = evaluate(
        planned,
        policy,
        episodes=options.episodes,
        seed=options.seed,
        execute=_execution(options.execute),
        hold=options.hold,
        max_steps=options.max_steps,
        observer_factory=eyes.observer_factory,
        view=eyes.view,
        slots=options.slots,
        workers=options.workers,
        output=options.output,
        identity=identity | {"perception": eyes.perception, "points": eyes.points},
        video=Recording(first=options.video) if options.video else None,
    )
    print(result)
    return 0


def serve_policy(options: ServeOptions) -> int:
    """Runs ``serve`` until Ctrl-C; prints the address."""
    require("websockets")
    from visiongraft.robots.server import ServerConfig, serve

    backend = served(load_policy(options.weights, device=options.device))
    serve(backend, ServerConfig(host=options.host, port=options.port), on_ready=lambda address: print(address, flush=True))
    return 0


def served(policy: PointBridgePolicy) -> "Backend":
    """A policy as the backend of a server, which asks clients for what it looks at and no more."""
    from visiongraft.robots.hosting import policy_backend

    return policy_backend(policy, chunk=policy.model.config.chunk, tasks=policy.card.tasks, observation_keys=policy.observation_keys)


def _policy(options: EvaluateOptions) -> tuple[Any, list[str], str, dict[str, Any]]:
    """Policy, tasks, what it sees, and facts that tell it from others."""
    if options.weights.startswith(("ws://", "wss://")):
        require("websockets")
        from visiongraft.robots.client import RemotePolicy

        policy: Any = RemotePolicy(options.weights)
        keys = policy.metadata.get("observation_keys") or ()
        observed = "scene" if "scene_points" in keys else "image" if "images" in keys else "points"
        tasks, known = policy.metadata.get("tasks") or [], policy.metadata.get("fingerprint")
        if tasks:
            PolicyCard(tasks=tuple(tasks)).require_tasks(options.tasks or ())
    else:
        policy = load_policy(options.weights, tasks=options.tasks, device=options.device)
        observed, tasks, known = policy.model.config.observed, list(policy.card.tasks), policy.fingerprint
    chosen = options.tasks or list(tasks)
    if not chosen:
        raise ValueError("The policy does not say which tasks it was trained on; name some with --tasks.")
    return policy, chosen, observed, {"policy": known}


def _trained_size(policy: Any, observed: str) -> tuple[int, int] | None:
    """Size of the images that a policy on images was trained with; a server does not tell."""
    if observed != "image" or not isinstance(policy, PointBridgePolicy):
        return None
    side = policy.model.config.image_size
    return side, side


def _default_perception(observed: str, twin: bool) -> str:
    if observed == "points":
        return "segmentation" if twin else "simulator"
    return "scene" if observed == "scene" else "images"


def _execution(text: str) -> Any:
    if text == "ensemble":
        return text
    if text.isdecimal() and int(text) >= 1:
        return int(text)
    raise ValueError(f"execute must be ensemble or a number of actions of at least 1; got {text!r}.")
