"""Entry points of ``torch.hub``: ``torch.hub.load(CHECKOUT, 'stcn_light', source='local')``."""

dependencies = ['torch', 'torchvision', 'numpy', 'PIL', 'cv2']

from inference import InferenceCore, load_model  # noqa: E402


def stcn_light(pretrained: bool = True, **options) -> InferenceCore:
    """A core around the light network shipped here; ``options`` are those of ``InferenceCore``, as ``top_k=50``.

    ``pretrained=False`` gives random weights.
    """
    from model import STCN, VARIANTS

    return InferenceCore(load_model() if pretrained else STCN(VARIANTS['stcn_light']).eval(), **options)


def stcn(checkpoint: str, **options) -> InferenceCore:
    """A core around the network of a checkpoint file, a published one or our own.

    What the checkpoint recommends holds where ``options`` say nothing.
    """
    return InferenceCore(load_model(checkpoint), **options)
