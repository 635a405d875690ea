"""A reverse-ablation step for every sample of a batch at once, each from the same model, without copies of it.

One backward pass gives each layer's input a and the gradient d of its output, sample by sample. A sample's step
changes the layer's weights by -strength * sign(gradient), and so its output on a new input x by

    linear layer     -strength * sign(d) * (sign(a) . x), as the gradient is the outer product of d and a;
    convolution      -strength * sign(d u(a)^T) u(x), where u unfolds an image into patches, as one batched product.

So a second forward pass that adds these terms to each layer's output sees, in row i, the model after the step of
sample i. No weight matrix of a linear layer is ever held per sample; those of convolutions are, a chunk at a time.
"""

import torch
import torch.nn.functional as F
from torch import nn

from experiment import UserError

LAYERS = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)
CHUNK = 32  # samples at a time: memory grows with it, speed hardly does beyond


def score(model, images, strength, eps=None, chunk=CHUNK):
    """(before, after, gradient norm), each (N,): what each sample's own step would do to its squared error.

    before, after: squared error at the model and after the sample's step, with the latent mean or the same draw eps
    (N, latent) on both sides. gradient norm: L2 norm of the sample's gradient over all parameters (GraNd, Paul et
    al. 2021). The model is never changed. Raises UserError if it has other layers with parameters than LAYERS.
    """
    chunks = images.split(chunk)
    noise = [None] * len(chunks) if eps is None else eps.split(chunk)
    parts = [_score_chunk(model, x, strength, e) for x, e in zip(chunks, noise, strict=True)]
    return tuple(torch.cat(column) for column in zip(*parts, strict=True))


def _score_chunk(model, x, strength, eps):
    before, seen = _backward(model, x, eps)
    with torch.no_grad():
        signs, squares = {}, torch.zeros_like(before)
        for layer, (a, d) in seen.items():
            signs[layer], square = SIGNS[type(layer)](layer, a, d)
            squares += square
        hooks = [layer.register_forward_hook(_Shift(strength, *sign)) for layer, sign in signs.items()]
        try:
            after = model.squared_error(x, eps)
        finally:
            for hook in hooks:
                hook.remove()
    return before, after, squares.sqrt()


def _backward(model, x, eps):
    """(squared errors (B,), {layer: (its input, gradient of the squared error by its output)}), per sample."""
    layers = [layer for layer in model.modules() if isinstance(layer, LAYERS)]
    known = sum(p.numel() for layer in layers for p in layer.parameters(recurse=False))
    if known != sum(p.numel() for p in model.parameters()):
        raise UserError(f"{type(model).__name__} has layers whose parameters cannot be stepped per sample")
    seen = {}
    hooks = [layer.register_forward_hook(lambda m, args, out: seen.update({m: (args[0].detach(), out)}))
             for layer in layers]
    try:
        with torch.enable_grad():
            errors = model.squared_error(x, eps)
    finally:
        for hook in hooks:
            hook.remove()
    # layers that the error does not depend on (the log-variance, at the latent mean) get zeros
    slopes = torch.autograd.grad(errors.sum(), [out for _, out in seen.values()], materialize_grads=True)
    return errors.detach(), {layer: (a, d) for (layer, (a, _)), d in zip(seen.items(), slopes, strict=True)}


# --- the sign of a layer's per-sample gradient, and its squared norm ------------------------------
# Each returns ((weight part, bias part), square (B,)); the weight part is what _Shift needs for the layer's kind.


def _linear(layer, a, d):
    square = d.square().sum(1) * (a.square().sum(1) + (layer.bias is not None))
    return ((d.sign(), a.sign()), d.sign()), square


def _conv(layer, a, d):
    grad = d.flatten(2) @ _patches(layer, a).transpose(1, 2)  # (B, out, in * k * k)
    return _signs_of(layer, grad, d)


def _conv_transpose(layer, a, d):
    grad = a.flatten(2) @ _patches(layer, d).transpose(1, 2)  # (B, in, out * k * k)
    return _signs_of(layer, grad, d)


def _signs_of(layer, grad, d):
    bias = d.sum((2, 3)) * (layer.bias is not None)  # (B, out)
    square = torch.linalg.vector_norm(grad, dim=(1, 2)).square() + bias.square().sum(1)
    return (grad.sign_(), bias.sign()[:, :, None, None]), square  # in place: fresh memory is what takes time here


def _patches(layer, image):
    """u(image): (B, channels * k * k, positions)."""
    if layer.groups != 1 or layer.padding_mode != "zeros":
        raise UserError("grouped convolutions and paddings other than zeros cannot be stepped per sample")
    return F.unfold(image, layer.kernel_size, layer.dilation, layer.padding, layer.stride)


SIGNS = {nn.Linear: _linear, nn.Conv2d: _conv, nn.ConvTranspose2d: _conv_transpose}


class _Shift:
    """Forward hook: a layer's output as if each sample's row had seen the layer after that sample's own step."""

    def __init__(self, strength, weight, bias):
        self.strength, self.weight, self.bias = strength, weight, bias

    def __call__(self, layer, args, out):
        x = args[0]
        if isinstance(layer, nn.Linear):
            sign_d, sign_a = self.weight
            shift = sign_d * (sign_a * x).sum(1, keepdim=True)
        elif isinstance(layer, nn.Conv2d):
            shift = (self.weight @ _patches(layer, x)).view_as(out)
        else:
            columns = self.weight.transpose(1, 2) @ x.flatten(2)  # (B, out * k * k, positions)
            shift = F.fold(columns, out.shape[2:], layer.kernel_size, layer.dilation, layer.padding, layer.stride)
        return out - self.strength * (shift + self.bias if layer.bias is not None else shift)
