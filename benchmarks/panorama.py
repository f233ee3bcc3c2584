"""Cost of the panorama graft: tokens of the input in the sequence, against the base alone, and the whole model on a GPU.

    python benchmarks/panorama.py            # CPU: token concatenation, a FLUX block and a Wan block at their real widths
    python benchmarks/panorama.py --real     # GPU: 50 steps at 1024x2048 with FLUX's configuration, against FluxKontextPipeline

Sampling, circular encoding and the ray caster have scripts of their own: panorama_geometry.py, panorama_circular.py, worlds.py.
Prints what, on what, against what, and the ratio; asserts nothing.
"""

import argparse
import time
from collections.abc import Callable

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxKontextPipeline,
    FluxTransformer2DModel,
    WanTransformer3DModel,
)

from visiongraft.methods.panorama.image_pipeline import PanoramaImagePipeline
from visiongraft.methods.panorama.sequence_flux import flux_velocity
from visiongraft.methods.panorama.sequence_wan import wan_velocity


def paired(with_graft: Callable[[], object], without: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Fastest seconds of both, measured in turn."""
    best = [float("inf"), float("inf")]
    for call in (with_graft, without):
        call()
    for _ in range(repeats):
        for k, call in enumerate((with_graft, without)):
            started = time.perf_counter()
            call()
            best[k] = min(best[k], time.perf_counter() - started)
    return best[0], best[1]


def predicted(tokens: int, extra: int, width: int, linear: float) -> float:
    """Ratio that the operations predict: ``linear`` x width^2 a token for the layers, 4 x tokens x width for attention."""
    cost = lambda n: n * (linear * width**2) + 4 * n * n * width
    return cost(tokens + extra) / cost(tokens)


@torch.no_grad()
def flux(height: int, repeats: int) -> None:
    """One double and one single block of FLUX at its real width, with random weights."""
    transformer = FluxTransformer2DModel(num_layers=1, num_single_layers=1, guidance_embeds=True).eval()
    side = height // 8
    panorama, condition = torch.randn(1, 16, side, 2 * side), torch.randn(1, 16, side // 2, side // 2)
    text, pooled, t = torch.randn(1, 512, 4096), torch.randn(1, 768), torch.full((1,), 0.5)
    calls = [lambda c=c: flux_velocity(transformer, panorama, c, t, text, pooled, guidance=1.0) for c in (condition, None)]
    seconds = paired(calls[0], calls[1], repeats)
    tokens, extra = side * side // 2 + 512, side * side // 16
    report(f"FLUX, 1 + 1 blocks, {tokens} + {extra} tokens", seconds, predicted(tokens, extra, 3072, 24.0))


@torch.no_grad()
def wan(height: int, frames: int, repeats: int) -> None:
    """One block of Wan2.1-1.3B at its real width, with random weights."""
    transformer = WanTransformer3DModel(num_attention_heads=12, attention_head_dim=128, ffn_dim=8960, num_layers=1).eval()
    side, length = height // 8, (frames - 1) // 4 + 1
    panorama, condition = torch.randn(1, 16, length, side, 2 * side), torch.randn(1, 16, length, side // 2, side // 2)
    text, t = torch.randn(1, 512, 4096), torch.full((1,), 0.5)
    calls = [lambda c=c: wan_velocity(transformer, panorama, c, t, text) for c in (condition, None)]
    seconds = paired(calls[0], calls[1], repeats)
    tokens, extra = length * side * side // 2, length * side * side // 16
    report(f"Wan 1.3B, 1 block, {tokens} + {extra} tokens", seconds, predicted(tokens, extra, 1536, 8 + 8 + 4 * 8960 / 1536))


def report(what: str, seconds: tuple[float, float], limit: float) -> None:
    """One line: both times, their ratio, what the operations predict, and attention's alone."""
    print(
        f"{what}: {1000 * seconds[0]:.0f} ms with the input's tokens, {1000 * seconds[1]:.0f} ms without: "
        f"{seconds[0] / seconds[1]:.3f} x (operations predict {limit:.3f} x; attention alone 1.125^2 = 1.266 x)"
    )


def real_configuration() -> None:
    """50 steps at 1024x2048 from a 512x512 input, and FluxKontextPipeline with as many tokens; random weights, bfloat16."""
    device = torch.device("cuda")
    with device:
        transformer = FluxTransformer2DModel(guidance_embeds=True).to(torch.bfloat16).eval()
        vae = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
            latent_channels=16,
            scaling_factor=0.3611,
            shift_factor=0.1159,
            use_quant_conv=False,
            use_post_quant_conv=False,
            force_upcast=False,
        ).to(torch.bfloat16)
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    parts: dict = {"text_encoder": None, "tokenizer": None, "text_encoder_2": None, "tokenizer_2": None}
    ours = PanoramaImagePipeline(scheduler=scheduler, vae=vae, transformer=transformer, **parts)
    kontext = FluxKontextPipeline(scheduler=scheduler, vae=vae, transformer=transformer, **parts)
    embeds = {
        "prompt_embeds": torch.randn(1, 512, 4096, device=device, dtype=torch.bfloat16),
        "pooled_prompt_embeds": torch.randn(1, 768, device=device, dtype=torch.bfloat16),
    }
    photo = torch.rand(1, 3, 512, 512, generator=torch.Generator().manual_seed(0))
    options = {"num_inference_steps": 50, "generator": torch.Generator().manual_seed(0), "output_type": "latent", **embeds}
    calls = {
        "ours": lambda: ours(photo, None, height=1024, **options),
        "FluxKontextPipeline": lambda: kontext(
            image=photo.to(device), height=1024, width=2048, max_area=2**21, _auto_resize=False, **options
        ),
    }
    seconds = {}
    for name, call in calls.items():
        torch.cuda.reset_peak_memory_stats()
        torch.cuda.synchronize()
        started = time.perf_counter()
        call()
        torch.cuda.synchronize()
        seconds[name] = time.perf_counter() - started
        print(f"{name}: {seconds[name]:.1f} s, peak {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB on {torch.cuda.get_device_name()}")
    print(f"ratio {seconds['ours'] / seconds['FluxKontextPipeline']:.3f} x")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--real", action="store_true", help="the real configuration on a GPU")
    parser.add_argument("--height", type=int, default=128, help="of the panorama on CPU (default: 128)")
    parser.add_argument("--frames", type=int, default=5, help="of Wan's clip on CPU (default: 5)")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} CPU threads")
    if options.real:
        if not torch.cuda.is_available():
            raise SystemExit("--real needs a GPU; leave it out to measure on the CPU.")
        real_configuration()
        return
    flux(options.height, options.repeats)
    wan(options.height, options.frames, options.repeats)


if __name__ == "__main__":
    main()
