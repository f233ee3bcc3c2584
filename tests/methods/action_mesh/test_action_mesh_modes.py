import pytest
import torch
from tiny_action_mesh import SMALL, box_with_seams, clip, tiny_models, tiny_pipeline

from visiongraft.media.meshes import write_mesh
from visiongraft.methods.action_mesh.animation import Animation
from visiongraft.methods.action_mesh.generators import procedural_image, procedural_video
from visiongraft.methods.action_mesh.given_mesh import take_mesh
from visiongraft.methods.action_mesh.matting import matte_frames
from visiongraft.methods.action_mesh.mesh_yaw import search_yaw, turn
from visiongraft.methods.action_mesh.modes import (
    animate_image_from_text,
    animate_mesh,
    animate_mesh_from_text,
    animate_text,
    animate_video,
    extrapolate,
    front_view,
    transfer_motion,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore:The clip has"),
    pytest.mark.filterwarnings("ignore:.*coordinates are at the sides"),
    pytest.mark.filterwarnings("ignore:The object touches"),
]


@pytest.fixture(scope="module")
def pipeline():
    return tiny_pipeline(tiny_models())


@pytest.fixture(scope="module")
def frames():
    return clip(4, side=32)


def wedge() -> tuple[torch.Tensor, torch.Tensor]:
    """A closed wedge: an L-like outline from +x, a plain rectangle from +z; no two of its four side views are alike but mirrored."""
    vertices = torch.tensor([[0.0, 0, 0], [0, 0, 2], [0, 1, 0], [0.5, 0, 0], [0.5, 0, 2], [0.5, 1, 0]])
    faces = torch.tensor([[0, 1, 2], [3, 5, 4], [0, 3, 4], [0, 4, 1], [0, 2, 5], [0, 5, 3], [1, 4, 5], [1, 5, 2]])
    return vertices, faces


def test_video_is_matted_and_animated(pipeline, frames):
    animation = animate_video(pipeline, frames, **SMALL)
    assert torch.equal(animation.vertices, pipeline(matte_frames(frames), **SMALL).vertices)
    assert len(animation.vertices) == 4


def test_mesh_files_and_meshes_in_memory_move_alike(pipeline, frames, tmp_path):
    vertices, faces = box_with_seams()
    expected = pipeline(matte_frames(frames), (vertices, faces), **SMALL)
    assert torch.equal(animate_mesh(pipeline, (vertices, faces), frames, **SMALL).vertices, expected.vertices)
    path = write_mesh(tmp_path / "box.glb", vertices, faces)
    read = animate_mesh(pipeline, path, frames, **SMALL)
    assert torch.allclose(read.vertices, expected.vertices, atol=1e-4) and read.user_mesh.path == path
    with pytest.raises(FileNotFoundError, match="There is no mesh file"):
        animate_mesh(pipeline, tmp_path / "none.glb", frames, **SMALL)
    with pytest.raises(ValueError, match="has no faces"):
        animate_mesh(pipeline, (vertices, faces[:0]), frames, **SMALL)


@pytest.mark.parametrize("yaw", [0, 90, 180, 270])
def test_yaw_search_finds_the_turn_that_the_picture_shows(yaw):
    vertices, faces = wedge()
    shown = front_view((vertices, faces), 96, mesh_yaw=yaw)
    found, overlaps = search_yaw(vertices, faces, shown)
    assert set(overlaps) == {0, 90, 180, 270} and overlaps[yaw] > 0.9
    # from +z and from -z the wedge is the same rectangle: then the smaller turn is taken
    assert found == {0: 0, 90: 90, 180: 0, 270: 270}[yaw]
    with pytest.raises(ValueError, match="no object before white"):
        search_yaw(vertices, faces, torch.ones(3, 8, 8))


def test_turn_is_counter_clockwise_from_above():
    assert torch.allclose(turn(torch.tensor([[0.0, 3, 1]]), 90), torch.tensor([[1.0, 3, 0]]), atol=1e-6)
    points = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(turn(turn(points, 33), -33), points, atol=1e-6)
    assert turn(points, 360) is points


def test_motion_transfer_turns_the_mesh_by_the_search(pipeline):
    vertices, faces = wedge()
    shown = front_view((vertices, faces), 64, mesh_yaw=90)[None].repeat(3, 1, 1, 1)
    animation = transfer_motion(pipeline, (vertices, faces), shown, **SMALL)
    assert animation.user_mesh.yaw_deg == 90
    assert torch.allclose(animation.vertices[0], vertices, atol=1e-5)
    assert transfer_motion(pipeline, (vertices, faces), shown, mesh_yaw=15, **SMALL).user_mesh.yaw_deg == 15


def test_front_view_fills_nine_tenths_of_a_white_picture():
    picture = front_view(box_with_seams(size=(4.0, 2.0, 1.0)), 200)
    seen = (picture.amin(0) < 0.95).nonzero()
    low, high = seen.amin(0).tolist(), seen.amax(0).tolist()
    assert [high[1] - low[1] + 1, high[0] - low[0] + 1] == pytest.approx([180, 90], abs=2)
    assert float(picture[:, 0, 0].min()) == 1


def test_mesh_and_text_start_from_the_meshs_own_picture(pipeline):
    asked = []

    def generate(picture, text):
        asked.append((picture, text))
        return procedural_video(3)(picture, text)

    mesh = wedge()
    animation = animate_mesh_from_text(pipeline, mesh, "it swings", generate, image_size=48, mesh_yaw=90, **SMALL)
    assert asked[0][1] == "it swings" and torch.equal(asked[0][0], front_view(mesh, 48, mesh_yaw=90))
    assert animation.vertices.shape == (3, 6, 3) and animation.user_mesh.yaw_deg == 90
    with pytest.raises(ValueError, match="anchor is 0; got 1"):
        animate_mesh_from_text(pipeline, mesh, "it swings", generate, anchor=1, **SMALL)


def test_image_and_text(pipeline):
    image = procedural_image(32)("a fish")
    rgba = torch.cat([image, (image.amin(0, keepdim=True) < 0.98).float()])
    animation = animate_image_from_text(pipeline, rgba, "it swims", procedural_video(3), **SMALL)
    assert len(animation.vertices) == 3 and animation.user_mesh is None
    with pytest.raises(ValueError, match="3 channels, or 4 with alpha; got 1"):
        animate_image_from_text(pipeline, image[:1], "it swims", procedural_video(3), **SMALL)


def test_text_goes_through_picture_and_video_or_straight(pipeline):
    drawn, moved = [], []

    def draw(text):
        drawn.append(text)
        return procedural_image(32)(text)

    def move(picture, text):
        moved.append(text)
        return procedural_video(3)(picture, text)

    first = animate_text(pipeline, "a fish", draw, move, motion="it swims", **SMALL)
    assert drawn == ["a fish"] and moved == ["it swims"]
    animate_text(pipeline, "a fish", draw, move, **SMALL)
    assert moved[1] == "a fish"
    straight = animate_text(pipeline, "a fish", text_to_video=lambda text: move(draw(text), "it swims"), **SMALL)
    assert torch.equal(straight.vertices, first.vertices)


def test_missing_generators_are_named(pipeline):
    image, mesh = procedural_image(32)("a fish"), wedge()
    for call in (
        lambda: animate_mesh_from_text(pipeline, mesh, "it swings"),
        lambda: animate_image_from_text(pipeline, image, "it swims"),
        lambda: animate_text(pipeline, "a fish", procedural_image(32)),
    ):
        with pytest.raises(ValueError, match=r"pass image_to_video=\.\.\., an \(image, text\) -> frames function.*WanImageToVideoPipeline"):
            call()
    with pytest.raises(ValueError, match=r"pass text_to_image=\.\.\..*AutoPipelineForText2Image"):
        animate_text(pipeline, "a fish", image_to_video=procedural_video(3))
    with pytest.raises(ValueError, match="takes the place of"):
        animate_text(pipeline, "a fish", procedural_image(32), text_to_video=lambda text: image)


def test_generators_that_give_no_frames_are_named(pipeline):
    image = procedural_image(32)("a fish")
    with pytest.raises(ValueError, match=r"image_to_video must give frames.*got shape \(3, 32, 32\)"):
        animate_image_from_text(pipeline, image, "it swims", lambda picture, text: picture)
    with pytest.raises(ValueError, match="text_to_video gave frames with values that are not finite"):
        animate_text(pipeline, "a fish", text_to_video=lambda text: torch.full((3, 3, 32, 32), torch.nan))
    with pytest.raises(ValueError, match=r"text_to_image must give a picture.*got shape \(2, 2\)"):
        animate_text(pipeline, "a fish", lambda text: torch.zeros(2, 2), procedural_video(3))


def test_extrapolation_goes_on_from_an_animation(pipeline):
    frames = clip(7, side=32)
    options = {"window": 4, "slide": 3, **SMALL}
    # a clip whose union box is that of its first part
    first = animate_video(pipeline, frames[[0, 6, 1, 2]], **options)
    longer = extrapolate(pipeline, frames[[0, 6, 1, 2, 3, 4, 5]], first, **options)
    assert torch.equal(longer.vertices[:4], first.vertices) and longer.times == tuple(range(7))
    whole = extrapolate(pipeline, frames[[0, 6, 1, 2, 3, 4, 5]], **options)
    assert torch.equal(whole.vertices, longer.vertices)
    from_file = Animation(vertices=first.vertices, faces=first.faces, times=first.times, anchor=0)
    with pytest.raises(ValueError, match="no latents"):
        extrapolate(pipeline, frames, from_file, **options)


def test_taking_a_mesh_changes_nothing_and_leaves_room():
    vertices, faces = box_with_seams()
    before = vertices.clone()
    taken = take_mesh((vertices, faces), 0.5)
    assert torch.equal(vertices, before)
    assert taken.vertices.abs().amax(0).tolist() == pytest.approx([0.5, 0.25, 0.25], abs=1e-6)
