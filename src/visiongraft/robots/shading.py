"""Colours of what rays meet: materials, textures and lights of a MuJoCo scene, shaded diffusely as its OpenGL renderer does."""

import mujoco
import numpy as np
from jaxtyping import Float, Int32, UInt8

from visiongraft.robots.mujoco_bodies import camera_pose
from visiongraft.robots.surface_normals import pixel_normals, primitive_normals

_PLANE = int(mujoco.mjtGeom.mjGEOM_PLANE)
_TEXTURE_2D = int(mujoco.mjtTexture.mjTEXTURE_2D)


class SceneColours:
    """What a model's geoms are painted with.

    Planes show their two-dimensional texture. Everything else has one colour, that of its material times the mean of its texture:
    rays do not know texture coordinates.
    """

    def __init__(self, model: mujoco.MjModel) -> None:
        # one more at the end, which the index -1 of a ray that meets nothing finds: black
        rgb = np.zeros((model.ngeom + 1, 3))
        rgb[:-1] = model.geom_rgba[:, :3]
        self.emission = np.zeros(model.ngeom + 1)
        self.textured: dict[int, tuple[UInt8[np.ndarray, "height width channels"], Float[np.ndarray, "2"]]] = {}
        default = np.array([0.5, 0.5, 0.5, 1.0], np.float32)
        for geom in np.flatnonzero(model.geom_matid >= 0).tolist():
            material = model.geom_matid[geom]
            if np.array_equal(model.geom_rgba[geom], default):  # MuJoCo's rule: a colour of the geom's own comes before the material's
                rgb[geom] = model.mat_rgba[material, :3]
            self.emission[geom] = model.mat_emission[material]
            texture = int(np.ravel(model.mat_texid[material]).max())
            if texture < 0:
                continue
            image = _texture(model, texture)
            if model.geom_type[geom] == _PLANE and model.tex_type[texture] == _TEXTURE_2D:
                self.textured[geom] = image, _repeats(model, geom, int(material))
            else:
                rgb[geom] *= image.reshape(-1, image.shape[-1])[:, :3].mean(axis=0) / 255
        self.rgb = np.ascontiguousarray(rgb.T)

    def texture_at(self, geom: int, local: Float[np.ndarray, "3 points"]) -> Float[np.ndarray, "3 points"]:
        """What a textured geom's colour is multiplied with at points given in its frame."""
        image, repeats = self.textured[geom]
        height, width = image.shape[:2]
        across = (local[0] * repeats[0] + 0.5) % 1.0
        down = (0.5 - local[1] * repeats[1]) % 1.0
        columns = np.minimum((across * width).astype(np.intp), width - 1)
        rows = np.minimum((down * height).astype(np.intp), height - 1)
        return image[rows, columns, :3].T / 255.0


def _texture(model: mujoco.MjModel, texture: int) -> UInt8[np.ndarray, "height width channels"]:
    height, width, channels = model.tex_height[texture], model.tex_width[texture], model.tex_nchannel[texture]
    start = model.tex_adr[texture]
    return model.tex_data[start : start + height * width * channels].reshape(height, width, channels).copy()


def _repeats(model: mujoco.MjModel, geom: int, material: int) -> Float[np.ndarray, "2"]:
    """Repeats of a plane's texture a metre."""
    repeat = model.mat_texrepeat[material].astype(np.float64)
    half = model.geom_size[geom, :2]
    if model.mat_texuniform[material] or not half.all():
        return 0.5 * repeat
    return 0.5 * repeat / half


def shade(
    model: mujoco.MjModel,
    data: mujoco.MjData,
    camera: int,
    rays: Float[np.ndarray, "3 height width"],
    depth: Float[np.ndarray, "height width"],
    geoms: Int32[np.ndarray, "height width"],
    colours: SceneColours,
) -> UInt8[np.ndarray, "height width 3"]:
    """Picture of what a camera sees; black where rays meet nothing.

    Args:
        model: the scene.
        data: its present moment.
        camera: index.
        rays: directions in the world's frame, of length 1 along the optical axis.
        depth: along the optical axis, metres.
        geoms: that are met, -1 for none.
        colours: of the model.
    """
    origin = data.cam_xpos[camera]
    met = geoms.ravel()
    offsets = rays.reshape(3, -1) * np.where(met >= 0, depth.ravel(), 0.0)
    normals, texture = np.zeros_like(offsets), np.ones_like(offsets)
    smooth: np.ndarray | None = None
    for geom in np.flatnonzero(np.bincount(met + 1, minlength=1)[1:]).tolist():
        here = np.flatnonzero(met == geom)
        rotation = data.geom_xmat[geom].reshape(3, 3)
        local = rotation.T @ (offsets[:, here] + (origin - data.geom_xpos[geom])[:, None])
        normal = primitive_normals(int(model.geom_type[geom]), model.geom_size[geom], local)
        if normal is None:
            smooth = pixel_normals(geoms, offsets.reshape(3, *geoms.shape)).reshape(3, -1) if smooth is None else smooth
            normals[:, here] = smooth[:, here]
        else:
            normals[:, here] = rotation @ normal
        if geom in colours.textured:
            texture[:, here] = colours.texture_at(geom, local)
    normals /= np.maximum(np.sqrt(np.sum(normals**2, axis=0)), 1e-12)
    light = _light(model, data, camera_pose(data, camera)[:3, 2], offsets + origin[:, None], normals)
    # OpenGL multiplies with the texture after it has cut the light's colour to 1
    lit = np.minimum(colours.rgb[:, met] * (light + colours.emission[met]), 1.0) * texture
    return np.ascontiguousarray((lit * 255 + 0.5).astype(np.uint8).T).reshape(*geoms.shape, 3)


def _light(
    model: mujoco.MjModel,
    data: mujoco.MjData,
    forward: Float[np.ndarray, "3"],
    points: Float[np.ndarray, "3 points"],
    normals: Float[np.ndarray, "3 points"],
) -> Float[np.ndarray, "3 points"]:
    """Light that arrives at points, by channel: the headlight, which shines along the optical axis, and the scene's lamps."""
    head = model.vis.headlight
    total = np.zeros_like(points)
    if head.active:
        total += np.outer(head.ambient, np.ones(points.shape[1])) + np.outer(head.diffuse, np.maximum(-forward @ normals, 0))
    for lamp in np.flatnonzero(model.light_active).tolist():
        strength = _lamp(model, data, lamp, points, normals)
        total += model.light_ambient[lamp][:, None] + model.light_diffuse[lamp][:, None] * strength
    return total


def _lamp(
    model: mujoco.MjModel, data: mujoco.MjData, lamp: int, points: Float[np.ndarray, "3 points"], normals: Float[np.ndarray, "3 points"]
) -> Float[np.ndarray, "points"]:
    """How brightly a lamp's diffuse light falls on points: Lambert's cosine, its cone and its attenuation."""
    axis = data.light_xdir[lamp]
    if _is_directional(model, lamp):
        return np.maximum(-axis @ normals, 0)
    way = points - data.light_xpos[lamp][:, None]
    distance = np.maximum(np.sqrt(np.sum(way**2, axis=0)), 1e-9)
    strength = np.maximum(-np.sum(way * normals, axis=0), 0) / distance
    cutoff = float(model.light_cutoff[lamp])
    if cutoff < 180:
        along = axis @ way / distance
        strength *= np.where(along >= np.cos(np.deg2rad(cutoff)), np.maximum(along, 0) ** float(model.light_exponent[lamp]), 0.0)
    constant, linear, quadratic = model.light_attenuation[lamp]
    return strength / (constant + linear * distance + quadratic * distance**2)


def _is_directional(model: mujoco.MjModel, lamp: int) -> bool:
    if hasattr(model, "light_type"):  # MuJoCo 3.3.1 and later
        return bool(model.light_type[lamp] == int(mujoco.mjtLightType.mjLIGHT_DIRECTIONAL))
    return bool(model.light_directional[lamp])
