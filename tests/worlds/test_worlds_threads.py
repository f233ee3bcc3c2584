import pytest
import torch

from visiongraft.geometry.panoramas import panorama_rays
from visiongraft.worlds.generation import make_scene
from visiongraft.worlds.raycaster import cast
from visiongraft.worlds.threads import share


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_threads_change_nothing_but_speed(two_threads):
    scene, rays = make_scene("room", 1), panorama_rays(32, 64)
    with torch.inference_mode():
        shared = cast(scene, scene.viewpoint, rays, tile=256)
    assert torch.get_num_threads() == 2
    torch.set_num_threads(1)
    alone = cast(scene, scene.viewpoint, rays, tile=256)
    assert torch.equal(shared.color, alone.color)
    assert torch.equal(shared.distance, alone.distance)
    assert not shared.color.is_inference()


def test_every_piece_is_done_once_without_gradients_and_errors_reach_the_caller(two_threads):
    done = torch.zeros(50)

    def work(i):
        assert not torch.is_grad_enabled()
        done[i] += 1

    share(work, range(50), torch.device("cpu"))
    assert torch.equal(done, torch.ones(50))

    def fail(i):
        raise KeyError(i)

    with pytest.raises(KeyError):
        share(fail, range(4), torch.device("cpu"))
    assert torch.get_num_threads() == 2
