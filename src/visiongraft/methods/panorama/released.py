"""Loading and saving grafts: bundled weights, folders, bases and public LoRAs. Safetensors only; what does not fit is refused."""

import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from diffusers import AutoencoderKL, AutoencoderKLWan, DiffusionPipeline, FluxTransformer2DModel, WanTransformer3DModel
from peft.utils import get_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from torch import nn

from visiongraft.media.files import ensure_writable_folder
from visiongraft.methods.panorama.components import build, require_none
from visiongraft.methods.panorama.config import FILE_NAME, GraftConfig, Mode, read_config, write_config

if TYPE_CHECKING:
    from visiongraft.methods.panorama.image_pipeline import PanoramaImagePipeline
    from visiongraft.methods.panorama.video_pipeline import PanoramaVideoPipeline

    Pipeline = PanoramaImagePipeline | PanoramaVideoPipeline

__all__ = ["BUNDLED", "build", "load", "save_graft"]

WEIGHTS = Path(__file__).parent / "weights"
BUNDLED = {"small": WEIGHTS / "image", "small-video": WEIGHTS / "video"}
LORA_FILE = "pytorch_lora_weights.safetensors"
_PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl")
_TRANSFORMERS: dict[Mode, Any] = {"image": FluxTransformer2DModel, "video": WanTransformer3DModel}
_VAES: dict[Mode, Any] = {"image": AutoencoderKL, "video": AutoencoderKLWan}
_ACCEPTED = (
    f"give 'small', 'small-video', a folder with {FILE_NAME} beside {LORA_FILE} or transformer/, the folder of a pipeline "
    "(model_index.json), or the hub id of a base such as black-forest-labs/FLUX.1-dev"
)


def load(
    path_or_hub_id: str | Path = "small",
    *,
    torch_dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
    mode: Mode | None = None,
    transformer: nn.Module | str | Path | None = None,
    lora: str | Path | None = None,
    fuse_lora: bool = False,
    **options: Any,
) -> "Pipeline":
    """A ready pipeline.

    Args:
        path_or_hub_id: ``small`` or ``small-video`` (bundled); a graft's folder: ``graft_config.json`` with
            ``pytorch_lora_weights.safetensors`` (a LoRA on its base) or ``transformer/`` (a full fine-tune), the rest from its base;
            the folder of a whole pipeline; or a hub id of a graft or a base. A base has no graft yet: it warns.
        torch_dtype: of the weights, such as ``torch.bfloat16``.
        device: where to put the pipeline; leave it out to use ``enable_model_cpu_offload``.
        mode: ``image`` or ``video``; only to insist on one.
        transformer: in place of the base's: a module, or a folder or hub id in Diffusers' layout.
        lora: a public LoRA on the same base to start from (folder, file or hub id), e.g. a text-to-panorama LoRA.
        fuse_lora: add ``lora`` into the weights, so that another can be trained or loaded on top. A LoRA trained so does not hold the
            fused one: save it with ``save_graft(..., complete=True)`` after fusing it too.
        options: further arguments of ``from_pretrained``, such as ``revision``, ``variant``, ``cache_dir``, ``quantization_config``.

    Returns:
        ``PanoramaImagePipeline`` or ``PanoramaVideoPipeline``; its ``graft`` is the graft's configuration.

    Raises:
        FileNotFoundError: nothing there, neither locally nor on the hub.
        ValueError: pickled or damaged weights, names or shapes that do not fit, a graft of the other mode.
    """
    source = str(BUNDLED.get(str(path_or_hub_id), path_or_hub_id))
    folder = Path(source) if Path(source).is_dir() else _graft_on_hub(source, options)
    graft, base = _what_it_is(source, folder, mode)
    components: dict[str, Any] = {}
    if isinstance(transformer, nn.Module):
        components["transformer"] = transformer
    elif transformer is not None:
        components["transformer"] = _read_model(_TRANSFORMERS[graft.mode], str(transformer), torch_dtype, options)
    elif folder is not None and base != source and (folder / "transformer").is_dir():
        components["transformer"] = _read_model(_TRANSFORMERS[graft.mode], str(folder / "transformer"), torch_dtype, options)
    pipeline = _read_pipeline(base, graft, components, torch_dtype, options)
    if lora is not None:
        _add_lora(pipeline, lora, "init")
        if fuse_lora:
            pipeline.fuse_lora(adapter_names=["init"])
            pipeline.unload_lora_weights()
    if folder is not None and (folder / LORA_FILE).is_file():
        _add_lora(pipeline, folder, "graft")
        if lora is not None and not fuse_lora:
            pipeline.set_adapters(["init", "graft"])
    return pipeline if device is None else pipeline.to(device)


def _what_it_is(source: str, folder: Path | None, mode: Mode | None) -> tuple[GraftConfig, str]:
    """The graft's configuration and where the base is."""
    if folder is not None and (folder / FILE_NAME).is_file():
        graft, whole = read_config(folder), (folder / "model_index.json").is_file()
        if not whole and not (folder / LORA_FILE).is_file() and not (folder / "transformer").is_dir():
            pickles = sorted(file.name for file in folder.iterdir() if file.suffix in _PICKLES)
            refused = f" ({', '.join(pickles)}: pickles are refused, since they can run any code)" if pickles else ""
            raise FileNotFoundError(f"{folder} has {FILE_NAME} but neither {LORA_FILE} nor transformer/{refused}.")
        base = source if whole else str(BUNDLED.get(graft.base, graft.base))
    else:
        graft, base = _untrained(source, folder, mode), source
    if mode is not None and graft.mode != mode:
        raise ValueError(f"{source} is a graft for {graft.mode}s; got mode={mode!r}.")
    return graft, base


def _untrained(source: str, folder: Path | None, mode: Mode | None) -> GraftConfig:
    """The configuration in a pipeline's own, or the paper's for a base without a graft."""
    path = Path(source)
    if path.is_file():
        raise ValueError(
            f"{path} is a pickle, which can run any code when it is loaded, and is refused; {_ACCEPTED}."
            if path.suffix in _PICKLES
            else f"{path} is a file: load('black-forest-labs/FLUX.1-dev', lora={source!r}) adds a LoRA to a base; otherwise {_ACCEPTED}."
        )
    if folder is not None and not (folder / "model_index.json").is_file():
        alone = (folder / "config.json").is_file()
        hint = f"; of a model without a pipeline: load('black-forest-labs/FLUX.1-dev', transformer={source!r})" if alone else ""
        raise FileNotFoundError(f"{folder} has neither {FILE_NAME} nor model_index.json; {_ACCEPTED}{hint}.")
    if folder is None and (source.count("/") != 1 or source.startswith((".", "/", "~"))):
        raise FileNotFoundError(f"There is no {source}; {_ACCEPTED}.")
    try:
        index: dict[str, Any] = DiffusionPipeline.load_config(source)  # pyright: ignore[reportAssignmentType]
    except (OSError, ValueError) as error:
        raise FileNotFoundError(f"There is no {source} here or on the hub ({_first_line(error)}); {_ACCEPTED}.") from error
    if index.get("graft"):
        return GraftConfig.from_dict(index["graft"])
    name = str(index.get("_class_name"))
    found = {"Flux": "image", "Wan": "video"}.get(next((kind for kind in ("Flux", "Wan") if name.startswith(kind)), ""), mode)
    if found is None:
        raise ValueError(f"{source} is a {name}; a base is a FLUX.1 or Wan2.1 pipeline.")
    warnings.warn(
        f"{source} is a base without a graft: its panoramas do not follow the input until it is trained (visiongraft panorama train).",
        stacklevel=4,
    )
    return GraftConfig.video(base=source) if found == "video" else GraftConfig.image(base=source)


def _graft_on_hub(source: str, options: dict[str, Any]) -> Path | None:
    """The local copy of a graft on the hub; None for a base, or where the hub cannot be asked."""
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    if Path(source).exists() or source.count("/") != 1 or source.startswith((".", "/", "~")):
        return None
    place = {name: options[name] for name in ("revision", "cache_dir", "local_files_only", "token") if name in options}
    try:
        hf_hub_download(source, FILE_NAME, **place)
        return Path(snapshot_download(source, allow_patterns=["*.json", "*.safetensors", "*.txt", "*.model"], **place))
    except (OSError, HfHubHTTPError, HFValidationError, ValueError):  # no such file or no network: the base's own loading says which
        return None


def _read_pipeline(base: str, graft: GraftConfig, components: dict[str, Any], dtype: torch.dtype | None, options: dict[str, Any]) -> Any:
    name, home = ("PanoramaVideoPipeline", "video_pipeline") if graft.mode == "video" else ("PanoramaImagePipeline", "image_pipeline")
    kind = getattr(import_module(f"visiongraft.methods.panorama.{home}"), name)
    if Path(base).is_dir():  # Diffusers fills what is missing with random weights; our own folders are read strictly
        for part, models in (("transformer", _TRANSFORMERS), ("vae", _VAES)):
            if part not in components:
                components[part] = _read_model(models[graft.mode], str(Path(base) / part), dtype, options)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*torch_dtype.* is deprecated", FutureWarning)  # the only name that older versions know
            pipeline = kind.from_pretrained(base, torch_dtype=dtype, use_safetensors=True, graft=graft.to_dict(), **components, **options)
    except OSError as error:
        raise FileNotFoundError(f"{base} cannot be loaded ({_first_line(error)}); {_ACCEPTED}.") from error
    return pipeline


def _read_model(kind: Any, source: str, dtype: torch.dtype | None, options: dict[str, Any]) -> nn.Module:
    """A transformer or autoencoder in Diffusers' layout, strictly: no name missing, none left over."""
    folder = Path(source)
    if folder.is_dir() and not (folder / "config.json").is_file() and (folder / "transformer" / "config.json").is_file():
        folder = folder / "transformer"
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise FileNotFoundError(f"{folder} has no config.json; give the folder that save_pretrained wrote.")
        if not list(folder.glob("*.safetensors")):
            pickles = [file.name for file in folder.iterdir() if file.suffix in _PICKLES]
            reason = f"only {', '.join(pickles)}, pickles: they can run any code and are refused" if pickles else "no *.safetensors weights"
            raise (ValueError if pickles else FileNotFoundError)(f"{folder} has {reason}.")
        name = kind.load_config(folder).get("_class_name")
        if name not in (None, kind.__name__):
            raise ValueError(f"{folder} holds a {name}; expected a {kind.__name__}.")
    extra = {key: value for key, value in options.items() if key in ("revision", "variant", "cache_dir", "local_files_only", "token")}
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*torch_dtype.* is deprecated", FutureWarning)
            model, report = kind.from_pretrained(
                str(folder) if folder.is_dir() else source, torch_dtype=dtype, use_safetensors=True, output_loading_info=True, **extra
            )
    except (SafetensorError, RuntimeError, ValueError) as error:
        raise ValueError(f"The weights in {source} are damaged or do not fit their config: {_first_line(error)}") from error
    except OSError as error:
        if folder.is_dir():  # its files are there
            raise ValueError(f"The weights in {source} are damaged: {_first_line(error)}.") from error
        raise FileNotFoundError(f"{source} cannot be loaded ({_first_line(error)}).") from error
    require_none([f"{what} {key}" for what in ("missing", "unexpected") for key in report[f"{what}_keys"]], kind.__name__)
    return model


def _add_lora(pipeline: Any, source: str | Path, name: str) -> None:
    """Loads a LoRA under a name, and checks that all of our own format's tensors found their places."""
    path = Path(source)
    if path.suffix in _PICKLES:
        raise ValueError(f"{path} is a pickle, which can run any code when it is loaded, and is refused; give a .safetensors LoRA.")
    place: dict[str, Any] = {"weight_name": LORA_FILE} if (path / LORA_FILE).is_file() else {}
    if path.is_file():
        path, place = path.parent, {"weight_name": path.name}
    if not path.is_dir() and str(source).count("/") != 1:
        raise FileNotFoundError(f"There is no LoRA {source}; give a folder, a .safetensors file or a hub id.")
    try:
        pipeline.load_lora_weights(str(path) if path.is_dir() else str(source), adapter_name=name, use_safetensors=True, **place)
    except OSError as error:
        raise FileNotFoundError(f"The LoRA {source} cannot be loaded ({_first_line(error)}).") from error
    except (SafetensorError, RuntimeError, ValueError, KeyError) as error:
        raise ValueError(f"The LoRA {source} is damaged or does not fit its base: {_first_line(error)}") from error
    if name == "graft":
        with safe_open(path / LORA_FILE, "pt") as file:
            given = {key.removeprefix("transformer.") for key in file.keys() if not key.endswith(".alpha")}  # noqa: SIM118 (not a dict)
        found = set(get_peft_model_state_dict(pipeline.transformer, adapter_name=name))
        require_none([f"unexpected {key}" for key in sorted(given - found)], type(pipeline.transformer).__name__)


def save_graft(folder: str | Path, model: Any, config: GraftConfig | None = None, *, complete: bool = False) -> Path:
    """Writes a graft's folder, whole or not at all: ``graft_config.json`` and the weights that :func:`load` reads.

    Args:
        folder: to create or replace; one that holds anything but a graft is refused.
        model: a pipeline, or its transformer. With a LoRA, the LoRA alone is written, else the transformer.
        config: of the graft; default: the pipeline's. ``lora_rank`` is set to what is written.
        complete: write the whole pipeline, which then needs no base.

    Raises:
        ValueError: no configuration, several LoRAs, a LoRA with ``complete`` or over fused weights, a folder with other things.
        PermissionError: a folder that cannot be written.
    """
    pipeline = model if isinstance(model, DiffusionPipeline) else None
    transformer: Any = model if pipeline is None else model.transformer
    config = config if config is not None or pipeline is None else pipeline.graft
    if config is None:
        raise ValueError("A transformer alone does not know its graft; give config=GraftConfig....")
    if complete and pipeline is None:
        raise ValueError("complete=True writes a whole pipeline; got a transformer.")
    adapters = getattr(transformer, "peft_config", {})
    if len(adapters) > 1:
        raise ValueError(f"The transformer has {len(adapters)} LoRAs ({', '.join(adapters)}); fuse all but the graft's.")
    if adapters and complete:
        raise ValueError("A whole pipeline is saved without a LoRA: call fuse_lora() and unload_lora_weights() first.")
    if adapters and pipeline is not None and pipeline.num_fused_loras:
        raise ValueError("A LoRA above fused ones is not a graft of its base: fuse and unload it too, then use complete=True.")
    rank = next(iter(adapters.values())).r if adapters else None
    with _folder_in_one_step(Path(folder)) as writing:
        if complete:
            model.save_pretrained(writing, safe_serialization=True)
        elif adapters:
            _save_lora(writing, transformer)
        else:
            transformer.save_pretrained(writing / "transformer", safe_serialization=True)
        write_config(config.changed(lora_rank=rank), writing)
    return Path(folder)


def _save_lora(folder: Path, transformer: Any) -> None:
    from diffusers import FluxPipeline, WanPipeline

    pipeline = WanPipeline if isinstance(transformer, WanTransformer3DModel) else FluxPipeline
    name, adapter = next(iter(transformer.peft_config.items()))
    metadata = {key: sorted(value) if isinstance(value, set) else value for key, value in adapter.to_dict().items()}
    tensors: dict[str, Any] = get_peft_model_state_dict(transformer, adapter_name=name)
    pipeline.save_lora_weights(folder, transformer_lora_layers=tensors, transformer_lora_adapter_metadata=metadata)


@contextmanager
def _folder_in_one_step(final: Path) -> Iterator[Path]:
    """A hidden folder that takes the place of ``final`` when the block ends, and vanishes when it raises."""
    ensure_writable_folder(final.parent)
    if final.exists() and (not final.is_dir() or (any(final.iterdir()) and not (final / FILE_NAME).is_file())):
        raise ValueError(f"{final} exists and is not a graft's folder; choose another.")
    writing = Path(tempfile.mkdtemp(prefix=f".{final.name}-", dir=final.parent))
    try:
        inner = writing / "new"
        inner.mkdir()
        yield inner
        if final.exists():
            final.rename(writing / "old")
        inner.rename(final)
    finally:
        shutil.rmtree(writing)


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else type(error).__name__
