"""From a clip to an animated mesh: stage 0 or a given mesh, stage I, stage II."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from diffusers import DiffusionPipeline
from jaxtyping import Float, Int
from torch import Tensor

from visiongraft.methods.action_mesh.animation import Animation
from visiongraft.methods.action_mesh.blocks import refuse_on_cpu
from visiongraft.methods.action_mesh.frames import check_num_frames
from visiongraft.methods.action_mesh.given_mesh import MeshSource, into_box_of, take_mesh
from visiongraft.methods.action_mesh.guidance import PairGuidance
from visiongraft.methods.action_mesh.image_to_3d import prepared_frames
from visiongraft.methods.action_mesh.latent_bank import TimeBank
from visiongraft.methods.action_mesh.memory import Stage, Stagewise, autocast
from visiongraft.methods.action_mesh.presets import Preset, preset_of
from visiongraft.methods.action_mesh.rectified_flow import RectifiedFlowScheduler
from visiongraft.methods.action_mesh.sampler import check_cancel
from visiongraft.methods.action_mesh.shape_latents import MAX_FACES, encode_mesh, extract_mesh, picture_tokens, sample_shape
from visiongraft.methods.action_mesh.stage_one import Callback, generate_latents
from visiongraft.methods.action_mesh.stage_two import QUERY_CHUNK, deform_mesh
from visiongraft.methods.action_mesh.temporal_autoencoder import TemporalAutoencoder
from visiongraft.methods.action_mesh.temporal_denoiser import TemporalDenoiser
from visiongraft.methods.action_mesh.triposg_dit import TripoSGDiT
from visiongraft.methods.action_mesh.triposg_vae import TripoSGVAE
from visiongraft.methods.action_mesh.user_mesh import UserMesh
from visiongraft.methods.action_mesh.windows import SLIDE, WINDOW, plan_windows

STAGES = ("pictures", "shape", "latents", "vertices")
"""What ``on_stage`` is told, in this order: image tokens, stage 0 (or the encoding of a given mesh), stage I, stage II."""


class ActionMeshPipeline(Stagewise, DiffusionPipeline):
    """Animated meshes from clips.

    Example::

        pipeline = ActionMeshPipeline(denoiser, autoencoder, vae, dit, scheduler, image_encoder)
        animation = pipeline(matte_frames(read_frames("clip.mp4")))

    Args:
        denoiser: stage I (graft 1).
        autoencoder: stage II (graft 2).
        vae: the base's, for meshes to latents and back.
        dit, scheduler: stage 0; not needed where a mesh is given.
        image_encoder: Transformers' ``Dinov2Model``, or a module or function from prepared frames to tokens. A function is not saved
            with the pipeline; give it again to ``from_pretrained``.
        feature_extractor: image processor of a Transformers encoder; ``None``: DINOv2's preparation.

    Source: arXiv 2601.16148; ActionMesh brief, 2 and 6.
    """

    model_cpu_offload_seq = "image_encoder->dit->vae->denoiser->autoencoder"
    _optional_components = ["dit", "scheduler", "image_encoder", "feature_extractor"]

    def __init__(
        self,
        denoiser: TemporalDenoiser,
        autoencoder: TemporalAutoencoder,
        vae: TripoSGVAE,
        dit: TripoSGDiT | None = None,
        scheduler: RectifiedFlowScheduler | None = None,
        image_encoder: Any = None,
        feature_extractor: Any = None,
    ) -> None:
        super().__init__()
        self.register_modules(
            denoiser=denoiser,
            autoencoder=autoencoder,
            vae=vae,
            dit=dit,
            scheduler=scheduler,
            image_encoder=image_encoder,
            feature_extractor=feature_extractor,
        )

    @torch.no_grad()
    def __call__(
        self,
        frames: Float[Tensor, "frames channels height width"],
        mesh: MeshSource | None = None,
        anchor: int | None = 0,
        preset: str | Preset = "default",
        seed: int = 44,
        window: int = WINDOW,
        slide: int = SLIDE,
        num_tokens: int | None = None,
        subsampling_level: int = 1,
        fit_scale: float | int = 1.0,
        mesh_yaw: float | int | str = 0.0,
        callback: Callback | None = None,
        cancel: Callable[[], bool] | None = None,
        *,
        sources: Mapping[int, MeshSource] | None = None,
        anchor_latents: Float[Tensor, "tokens code"] | None = None,
        continue_from: Animation | None = None,
        image_context: Float[Tensor, "pictures words dim"] | None = None,
        guidance: PairGuidance | None = None,
        noise_correlation: float | int = 0.0,
        split_cfg_batch: bool | None = None,
        resolution: int = 256,
        max_faces: int | None = MAX_FACES,
        upstream_scale: bool = False,
        query_chunk: int = QUERY_CHUNK,
        targets_at_once: int = 1,
        precision: str = "auto",
        force: bool = False,
        on_stage: Callable[[str], None] | None = None,
    ) -> Animation:
        """Animates a mesh by a clip. No argument is changed.

        Args:
            frames: in [0, 1]; with alpha (4 channels) they are cropped to the object and put before white, without (3 channels) they
                are taken as they are, square and before white.
            mesh: to animate: a file, a :class:`visiongraft.media.meshes.Mesh`, or (vertices, faces). ``None``: it is made from the
                anchor's picture.
            anchor: frame that shows the mesh. ``None``: nothing is known, and the mesh is that of frame 0 after stage I; the released
                weights were not trained for that.
            preset: ``default``, ``fast``, or settings.
            seed: of stage 0 and of the encoding of a mesh; window i of stage I has seed + i.
            window, slide: frames of a window, and new ones of each; clips may be longer or shorter.
            num_tokens: of a frame's latents; default: what the denoiser was trained for.
            subsampling_level: 1: one mesh a frame; 2 adds one between each two, 3 three.
            fit_scale: half the longest extent of a given mesh in the box; below 1 it leaves room for motion outward.
            mesh_yaw: by how many degrees a given mesh is turned about Y before it is encoded (and back afterwards), or ``search``: the
                one of four turns whose outline is most like the anchor's frame.
            callback: told (steps done, steps of the window, windows before this one, windows) in every stage.
            cancel: asked before each step.
            sources: further known meshes by frame, in the coordinates of ``mesh``.
            anchor_latents: of the mesh, in place of encoding it.
            continue_from: animation of the clip's first part; its frames are kept.
            image_context: tokens of the frames, in place of the image encoder.
            guidance: of stage I, in place of the preset's.
            noise_correlation: of the frames' noise in stage I, in [0, 1].
            split_cfg_batch: guidance branches one by one; default: in low-memory mode.
            resolution, max_faces, upstream_scale: of the extraction of a mesh from stage 0.
            query_chunk: vertices at once in stage II.
            targets_at_once: times at once in stage II.
            precision: of autocast, see :func:`visiongraft.methods.action_mesh.memory.autocast`.
            force: run windows of more than 20,000 tokens on a CPU.
            on_stage: told the name of each stage when it begins, see ``STAGES``.

        Returns:
            The animation, on the CPU: in the coordinates and the vertex order of a given mesh, else in the box [-1, 1]^3.

        Raises:
            ValueError: fewer than 2 frames, frames or meshes that cannot be used, or a component that is missing; see the parts.
            IndexError: an anchor outside the clip.
            Cancelled: when ``cancel`` says so.

        Source: ActionMesh brief, 2.4 to 2.11 and 6.
        """
        count = len(frames)
        windows = plan_windows(0 if anchor is None else anchor, count, window, slide)
        check_num_frames(count, self.denoiser.config.temporal_context_size)
        _check_options(count, mesh, anchor, anchor_latents, sources, continue_from)
        if mesh is None and (fit_scale != 1 or mesh_yaw != 0):
            raise ValueError(f"fit_scale and mesh_yaw are for a given mesh, and there is none; got {fit_scale} and {mesh_yaw!r}.")
        tokens: int = self.denoiser.config.num_tokens_nominal if num_tokens is None else num_tokens
        run = _Run(preset_of(preset), seed, tokens, self.stage_device, precision, callback, cancel, on_stage)
        prepared = prepared_frames(frames)
        if continue_from is None:  # before stage 0, which takes hours there
            given_tokens = tokens if anchor_latents is None else len(anchor_latents)
            refuse_on_cpu(run.device, max(map(len, windows)), given_tokens, force)

        run.begin("pictures")
        context = self._tokens(run, prepared) if image_context is None else image_context.to(run.device)
        if len(context) != count:
            raise ValueError(f"image_context has tokens of {len(context)} frames, and the clip has {count}.")

        run.begin("shape")
        given = None if continue_from is None else continue_from.user_mesh
        if mesh is not None:
            given = take_mesh(mesh, fit_scale, mesh_yaw, prepared[anchor or 0])
        known = TimeBank() if continue_from is None else continue_from.latent_bank()
        if anchor_latents is not None:
            known.add(anchor or 0, anchor_latents[None])
        elif anchor is not None and anchor not in known:
            known.add(anchor, self._shape(run, context[anchor]) if given is None else self._encode(run, given.vertices, given.faces))
        for frame, other in (sources or {}).items():
            known.add(frame, self._encode(run, *into_box_of(other, cast(UserMesh, given))))

        run.begin("latents")
        with self.working("denoiser") as denoiser, run.autocast("latents"), self._reporting("stage I", run) as told:
            latents = generate_latents(
                denoiser,
                context[None],
                known,
                anchor=anchor,
                num_tokens=tokens,
                window=window,
                slide=slide,
                num_steps=run.preset.steps,
                shift=run.preset.shift,
                guidance=PairGuidance.image(run.preset.guidance) if guidance is None else guidance,
                seed=seed,
                noise_correlation=noise_correlation,
                split_cfg_batch=self.low_memory if split_cfg_batch is None else split_cfg_batch,
                force=force,
                callback=told,
                cancel=cancel,
            )
        codes = TimeBank({time: latents[time][0] for time in latents.times})

        run.begin("vertices")
        if given is not None:
            vertices, faces = given.vertices, given.faces
        elif continue_from is not None:
            vertices, faces = continue_from.anchor_mesh()
        else:
            with self.working("vae") as vae, run.autocast("shape"):
                options: dict[str, Any] = {"resolution": resolution, "max_faces": max_faces, "upstream_scale": upstream_scale}
                vertices, faces = extract_mesh(vae, codes[anchor or 0], **options)
        with self.working("autoencoder") as autoencoder, run.autocast("vertices"), self._reporting("stage II", run) as told:
            moved = deform_mesh(
                autoencoder,
                codes,
                vertices.to(run.device),
                faces.to(run.device),
                windows,
                known=None if continue_from is None else continue_from.vertex_bank(),
                subsampling_level=subsampling_level,
                query_chunk=query_chunk,
                targets_at_once=targets_at_once,
                force=force,
                callback=told,
                cancel=cancel,
            )
        box = moved.stack().cpu()
        return Animation(
            vertices=box if given is None else given.restore(box),
            faces=faces.cpu() if given is None else given.original.faces,
            times=tuple(moved.times),
            anchor=anchor or 0,
            latents=codes.stack(range(count)).cpu(),
            box_vertices=box,
            user_mesh=given,
        )

    def _tokens(self, run: "_Run", prepared: Float[Tensor, "frames 3 side side"]) -> Float[Tensor, "frames words dim"]:
        with self.working("image_encoder") as encoder, run.autocast("shape"):
            return picture_tokens(encoder, self.feature_extractor, prepared.to(run.device))

    def _shape(self, run: "_Run", context: Float[Tensor, "words dim"]) -> Float[Tensor, "1 tokens channels"]:
        """Stage 0."""
        if self.dit is None or self.scheduler is None:
            raise ValueError("A mesh from a picture needs stage 0 (dit and scheduler), which this pipeline is without; or give a mesh.")
        with self.working("dit") as dit, run.autocast("shape"), self._reporting("stage 0", run) as told:
            return sample_shape(
                dit,
                self.scheduler,
                context[None],
                num_steps=run.preset.shape_steps,
                guidance_scale=run.preset.shape_guidance,
                num_tokens=run.num_tokens,
                generator=torch.Generator().manual_seed(run.seed),
                callback=lambda step, steps: told(step, steps, 0, 1),
                cancel=run.cancel,
            )

    def _encode(self, run: "_Run", vertices: Float[Tensor, "v 3"], faces: Int[Tensor, "f 3"]) -> Float[Tensor, "1 tokens channels"]:
        with self.working("vae") as vae:
            generator = torch.Generator().manual_seed(run.seed)
            return encode_mesh(vae, vertices, faces, num_tokens=run.num_tokens, generator=generator)

    @contextmanager
    def _reporting(self, name: str, run: "_Run") -> Iterator[Callback]:
        """A progress bar of one stage, and the caller's callback, as one callback."""
        progress_bar: Any = self.progress_bar
        with progress_bar(total=1) as bar:
            bar.set_description(name)

            def told(step: int, steps: int, window: int, windows: int) -> None:
                bar.total = steps * windows
                if windows > 1:
                    bar.set_description(f"{name}, window {window + 1} of {windows}", refresh=False)
                bar.update(steps * window + step - bar.n)
                if run.callback is not None:
                    run.callback(step, steps, window, windows)

            yield told


@dataclass(frozen=True, eq=False)
class _Run:
    """What all stages of one call are told."""

    preset: Preset
    seed: int
    num_tokens: int
    device: torch.device
    precision: str
    callback: Callback | None
    cancel: Callable[[], bool] | None
    on_stage: Callable[[str], None] | None

    def autocast(self, stage: Stage) -> Any:
        return autocast(self.device, stage, self.precision)

    def begin(self, stage: str) -> None:
        check_cancel(self.cancel, f"before the stage {stage!r}")
        if self.on_stage is not None:
            self.on_stage(stage)


def _check_options(
    count: int,
    mesh: MeshSource | None,
    anchor: int | None,
    anchor_latents: Tensor | None,
    sources: Mapping[int, MeshSource] | None,
    before: Animation | None,
) -> None:
    """Options that do not go together."""
    known = set(sources or {})
    if anchor is None and (mesh is not None or anchor_latents is not None or sources):
        raise ValueError("anchor=None generates everything from the pictures; a mesh, its latents or sources need the frame they show.")
    if sources and mesh is None and (before is None or before.user_mesh is None):
        raise ValueError("sources are further meshes in the coordinates of mesh; give mesh, that of the anchor, too.")
    if wrong := sorted(frame for frame in known if not 0 <= frame < count or frame == anchor):
        raise IndexError(f"sources must name frames of the clip, 0 to {count - 1}, other than the anchor; got {wrong}.")
    if len({anchor, *known} - {None}) == count:
        raise ValueError("All frames are sources, nothing to generate; leave at least one frame unknown.")
    if before is None:
        return
    if mesh is not None or anchor_latents is not None:
        raise ValueError("The animation to go on from brings its mesh and latents; leave mesh and anchor_latents out.")
    made = len(before.latent_bank())
    if anchor != before.anchor or made >= count:
        raise ValueError(
            f"To go on from an animation of {made} frames with anchor {before.anchor}, give a longer clip that begins with the same "
            f"frames, and the same anchor; got {count} frames and anchor {anchor}."
        )
