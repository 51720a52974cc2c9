import numpy as np
import pytest

from survey_lib.errors import UsageError
from survey_lib.profiles import profile

# multiply-adds of an image of 224 x 224 pixels and parameters in millions, as torchvision's own
# documentation lists them (with the bias terms of no operation counted)
KNOWN = {"vgg16": (15.47, 138.4, 16), "resnet50": (4.09, 25.6, 18), "mobilenet_v3": (0.22, 5.5, 18)}


@pytest.mark.parametrize("name", KNOWN)
def test_against_the_documented_sums(name):
    chain, (giga, million, L) = profile(name), KNOWN[name]
    assert chain.forward.sum() / 2e9 == pytest.approx(giga, abs=0.01)
    assert chain.weights.sum() / 4e6 == pytest.approx(million, abs=0.05)
    assert len(chain) == L == len(chain.names)
    assert chain.messages[-1] == 4 * 1000
    assert chain.backward[0] == chain.forward[0]
    assert (chain.backward[1:] == 2 * chain.forward[1:]).all()
    assert (chain.saved >= chain.messages).all()


def test_a_layer_by_hand():
    vgg = profile("vgg16", 2)
    assert vgg.forward[0] == 2 * 2 * 27 * 64 * 224 * 224  # 3 x 3 x 3 to 64 maps, two images
    assert vgg.weights[0] == 4 * (27 * 64 + 64)
    assert vgg.messages[0] == 2 * 4 * 64 * 224 * 224
    assert vgg.forward[13] == 2 * 2 * 25088 * 4096
    assert np.allclose(vgg.forward, 2 * profile("vgg16").forward)
    with pytest.raises(UsageError, match="use one of vgg16"):
        profile("alexnet")
