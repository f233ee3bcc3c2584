"""TripoSG's and ActionMesh's forward passes, written plainly after the brief: three separate projections whose outputs are joined,
reshaped and split at run time, on dictionaries of tensors in their storage layout. What the models are held to.
"""

import torch
from torch.nn import functional as F


def part(tensors: dict, prefix: str) -> dict:
    return {key[len(prefix) + 1 :]: value for key, value in tensors.items() if key.startswith(prefix + ".")}


def linear(tensors: dict, name: str, x: torch.Tensor) -> torch.Tensor:
    return F.linear(x, tensors[f"{name}.weight"], tensors.get(f"{name}.bias"))


def layer_norm(tensors: dict, name: str, x: torch.Tensor) -> torch.Tensor:
    weight = tensors[f"{name}.weight"]
    return F.layer_norm(x, weight.shape, weight, tensors[f"{name}.bias"], 1e-5)


def rms_norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * weight


def tables(positions: torch.Tensor, dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines (B, L, 1, dim) of positions (B, L), each repeated twice, interleaved."""
    frequencies = 1.0 / 10000.0 ** (torch.arange(0, dim, 2, dtype=positions.dtype) / dim)
    angles = (positions[..., None] * frequencies).repeat_interleave(2, dim=-1)[:, :, None]
    return angles.cos(), angles.sin()


def rotate(x: torch.Tensor, rope: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
    return x * rope[0] + torch.stack([-b, a], dim=-1).flatten(-2) * rope[1]


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def self_attention(tensors: dict, x: torch.Tensor, heads: int, rope=None) -> torch.Tensor:
    batch, length, width = x.shape
    joined = torch.cat([linear(tensors, name, x) for name in ("to_q", "to_k", "to_v")], dim=-1)
    q, k, v = torch.split(joined.reshape(batch, length, heads, 3 * width // heads), width // heads, dim=-1)
    if "norm_q.weight" in tensors:
        q, k = rms_norm(q, tensors["norm_q.weight"]), rms_norm(k, tensors["norm_k.weight"])
    if rope is not None:
        q, k = rotate(q, rope), rotate(k, rope)
    return linear(tensors, "to_out.0", attend(q, k, v))


def cross_attention(tensors: dict, x: torch.Tensor, context: torch.Tensor, heads: int) -> torch.Tensor:
    if "norm_cross.weight" in tensors:
        context = layer_norm(tensors, "norm_cross", context)
    batch, length, width = x.shape
    q = linear(tensors, "to_q", x).reshape(batch, length, heads, width // heads)
    joined = torch.cat([linear(tensors, name, context) for name in ("to_k", "to_v")], dim=-1)
    k, v = torch.split(joined.reshape(batch, context.shape[1], heads, 2 * width // heads), width // heads, dim=-1)
    if "norm_q.weight" in tensors:
        q, k = rms_norm(q, tensors["norm_q.weight"]), rms_norm(k, tensors["norm_k.weight"])
    return linear(tensors, "to_out.0", attend(q, k, v))


def block(tensors: dict, x, heads: int, context=None, skip=None, rope=None, frames: int = 1) -> torch.Tensor:
    """Under ActionMesh's names."""
    if "linear_skip.weight" in tensors:
        x = layer_norm(tensors, "norm_skip", linear(tensors, "linear_skip", torch.cat([skip, x], dim=-1)))
    if "norm_s_attn.weight" in tensors:
        tokens = layer_norm(tensors, "norm_s_attn", x)
        inflated = tokens.reshape(x.shape[0] // frames, frames * x.shape[1], x.shape[2])
        x = x + self_attention(part(tensors, "s_attn"), inflated, heads, rope).reshape(x.shape)
    if "norm_x_attn.weight" in tensors:
        x = x + cross_attention(part(tensors, "x_attn"), layer_norm(tensors, "norm_x_attn", x), context, heads)
    return x + linear(tensors, "ff.net.2", F.gelu(linear(tensors, "ff.net.0.proj", layer_norm(tensors, "norm_ff", x))))


def triposg_names(tensors: dict) -> dict:
    """TripoSG's names -> ActionMesh's."""
    table = {"norm1": "norm_s_attn", "attn1": "s_attn", "norm2": "norm_x_attn", "attn2": "x_attn", "norm3": "norm_ff"}
    table |= {"skip_norm": "norm_skip", "skip_linear": "linear_skip"}
    return {".".join(table.get(word, word) for word in key.split(".")): value for key, value in tensors.items()}


def time_token(tensors: dict, times: torch.Tensor, width: int) -> torch.Tensor:
    frequencies = 10000.0 ** (-torch.arange(width // 2, dtype=times.dtype) / (width // 2))
    angles = times[:, None] * frequencies
    features = torch.cat([angles.sin(), angles.cos()], dim=-1)
    return linear(tensors, "time_proj.linear_2", F.gelu(linear(tensors, "time_proj.linear_1", features)))[:, None]


def denoiser(tensors: dict, latents, context, framestep, timestep, heads: int, mask=None, inflated=None, rope: bool = True):
    """Stage I of (B, T, N, C); with T = 1 this is TripoSG's transformer."""
    batch, frames, tokens, _ = latents.shape
    width, layers = tensors["proj_in.weight"].shape[0], 1 + max(int(key.split(".")[1]) for key in tensors if key.startswith("blocks."))
    times = timestep.repeat_interleave(frames) * (1.0 if mask is None else 1 - mask.flatten().to(timestep.dtype))
    x = torch.cat([time_token(tensors, times, width), linear(tensors, "proj_in", latents.flatten(0, 1))], dim=1)
    positions = framestep - framestep.min(dim=1, keepdim=True).values
    window, single = tables(positions.repeat_interleave(tokens + 1, dim=1), width // heads), None
    if not rope:
        window = None
    else:
        single = tables(positions.reshape(-1, 1).expand(-1, tokens + 1), width // heads)
    skips = []
    for i in range(layers):
        wide = inflated is None or i in inflated
        skip = None if i <= layers // 2 else skips.pop()
        own = part(tensors, f"blocks.{i}")
        x = block(own, x, heads, context.flatten(0, 1), skip, window if wide else single, frames if wide else 1)
        if i < layers // 2:
            skips.append(x)
    x = layer_norm(tensors, "norm_out", x)[:, 1:]
    return linear(tensors, "proj_out", x).reshape(batch, frames, tokens, -1)


def point_features(points: torch.Tensor, octaves: int) -> torch.Tensor:
    angles = (points[..., None] * 2.0 ** torch.arange(octaves, dtype=points.dtype)).reshape(*points.shape[:-1], 3 * octaves)
    return torch.cat([points, angles.sin(), angles.cos()], dim=-1)


def encode(tensors: dict, surface, indices, heads: int, octaves: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and log-variance of TripoSG's VAE (its names)."""
    own = triposg_names(part(tensors, "encoder"))
    chosen = surface.gather(1, indices[..., None].expand(-1, -1, 6))
    features = [torch.cat([point_features(p[..., :3], octaves), p[..., 3:]], dim=-1) for p in (surface, chosen)]
    context, x = (linear(own, "proj_in", value) for value in features)
    for i in range(1 + max(int(key.split(".")[1]) for key in own if key.startswith("blocks."))):
        x = block(part(own, f"blocks.{i}"), x, heads, context)
    mean, logvar = linear(tensors, "quant", layer_norm(own, "norm_out", x)).chunk(2, dim=-1)
    return mean, logvar.clamp(-30, 20)


def decode(tensors: dict, latents, points, heads: int, octaves: int) -> torch.Tensor:
    """Logits of TripoSG's VAE."""
    own = triposg_names(part(tensors, "decoder"))
    last = max(int(key.split(".")[1]) for key in own if key.startswith("blocks."))
    x = linear(tensors, "post_quant", latents)
    for i in range(last):
        x = block(part(own, f"blocks.{i}"), x, heads)
    queries = block(part(own, f"blocks.{last}"), linear(own, "proj_query", point_features(points, octaves)), heads, x)
    return -linear(own, "proj_out", layer_norm(own, "norm_out", queries))[..., 0]


def pair_token(alphas: tuple[torch.Tensor, torch.Tensor], width: int) -> torch.Tensor:
    halves = []
    for alpha in alphas:
        angles = alpha[:, None] * 10000.0 ** (-torch.arange(width // 4, dtype=alpha.dtype) / (width // 4))
        halves += [angles.cos(), angles.sin()]
    return torch.cat(halves, dim=-1)[:, None]


def motion(tensors: dict, latents, framestep, source, target, points, normals, heads: int, octaves: int, mode: str = "direct"):
    """Stage II of (B, T, N, C): positions of the queries at the target time."""
    _, frames, tokens, _ = latents.shape
    width, last = tensors["post_quant.weight"].shape[0], max(int(key.split(".")[1]) for key in tensors if key.startswith("blocks."))
    first, span = framestep.min(dim=1).values, framestep.max(dim=1).values - framestep.min(dim=1).values
    pair = pair_token(((source - first) / span, (target - first) / span), width)
    x = torch.cat([linear(tensors, "post_quant", latents).flatten(1, 2), pair.expand(-1, frames, -1)], dim=1)
    positions = framestep - first[:, None]
    rope = tables(torch.cat([positions.repeat_interleave(tokens, dim=1), positions], dim=1), width // heads)
    for i in range(last):
        x = block(part(tensors, f"blocks.{i}"), x, heads, rope=rope)
    queries = torch.cat([point_features(points, octaves), normals], dim=-1)
    queries = block(part(tensors, f"blocks.{last}"), linear(tensors, "proj_query", queries), heads, x)
    answer = 2 * torch.sigmoid(-linear(tensors, "proj_out", layer_norm(tensors, "norm_out", queries))) - 1
    return (answer if mode == "direct" else points + answer).clamp(-1, 1)
