"""Classifiers of RGB images in [-1, 1] whose saliency maps are trained and measured; all have the same verbs.

    model(x)            logits (B, C) of images (B, 3, H, W)
    maps(x)             the last feature maps (B, F, h, w), for GradCAM
    head(maps)          logits from them: model(x) is head(maps(x))
    features(x)         (B, F): the maps, each averaged over its pixels

`small` is the default for 64 x 64 images on a processor. `bit` is the backbone of Chang, Adam and Goldenberg (CVPR
2021, arXiv 2106.01127), BiT-S-R50x1 (Kolesnikov et al., ECCV 2020, arXiv 1912.11370); `load_npz` reads its published
weights, storage.googleapis.com/bit_models/BiT-S-R50x1.npz. Every other name is one of torchvision's classifiers.

Every ReLU is a module of its own that is called once in a pass and works on a copy, because DeepLIFT hooks these
modules. Everything is twice differentiable, because saliency maps are trained through.
"""

import operator
import re

import numpy
import torch
import torch.nn.functional as F
import torchvision
from torch import fx, nn
from torchvision.ops import StochasticDepth

from experiment import UserError
from storage import load_checkpoint, load_weights, make, model_in

GROUPS = 8  # of each GroupNorm of SmallResNet
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of [0, 1] pixels, by which torchvision's networks were fed


class _Backbone(nn.Module):
    """A subclass defines `maps` and either `cls`, a linear layer, or a `head` of its own.

    rows_independent  whether, in training, the logits of an image depend on that image only
    """

    rows_independent = True

    def features(self, x):
        return self.maps(x).mean((2, 3))

    def head(self, maps):
        return self.cls(maps.mean((2, 3)))

    def forward(self, x):
        return self.head(self.maps(x))


class _Step(nn.Module):
    """Norm, ReLU, convolution."""

    def __init__(self, conv, groups):
        super().__init__()
        self.norm, self.relu, self.conv = nn.GroupNorm(groups, conv.in_channels), nn.ReLU(), conv

    def activate(self, x):
        return self.relu(self.norm(x))

    def forward(self, x):
        return self.conv(self.activate(x))


class _Residual(nn.Module):
    """A pre-activation unit (He et al. 2016, arXiv 1603.05027): steps a, b, ... beside the input.

    Where the shape changes, `a.proj` projects the activated input, not the input, to the new one.
    """

    def __init__(self, convs, groups, proj=None):
        super().__init__()
        for name, conv in zip("abc", convs, strict=False):
            self.add_module(name, _Step(conv, groups))
        self.a.proj = proj

    def forward(self, x):
        first, *rest = self.children()
        active = first.activate(x)
        out = first.conv(active)
        for step in rest:
            out = step(out)
        return out + (x if first.proj is None else first.proj(active))


# --- the default --------------------------------------------------------------------------------


class SmallResNet(_Backbone):
    """Two residual blocks at 16 and 8 pixels, on pixels folded four by four: 12 million multiplications an image of 64.

    GroupNorm and not BatchNorm: a counterfactual in the batch must not change what its neighbours are normalised by,
    nor the gradient of a row depend on the other rows. width: channels of the first block, a multiple of 8; the second
    has twice as many. Height and width of the images are multiples of 8. Folding makes it three times as fast on a
    processor as convolutions at 32 pixels with as many multiplications, which wait for memory.
    """

    def __init__(self, classes, width=32):
        super().__init__()
        if width < GROUPS or width % GROUPS:
            raise UserError(f"the width of a SmallResNet must be a multiple of {GROUPS}, not {width}")
        conv = lambda a, b, stride, kernel=3: nn.Conv2d(a, b, kernel, stride, kernel // 2, bias=False)
        self.fold, self.root = nn.PixelUnshuffle(4), conv(48, width, 1)
        self.block1 = _Residual([conv(width, width, 1), conv(width, width, 1)], GROUPS)
        self.block2 = _Residual([conv(width, 2 * width, 2), conv(2 * width, 2 * width, 1)], GROUPS,
                                conv(width, 2 * width, 2, kernel=1))  # fmt: skip
        self.norm, self.relu = nn.GroupNorm(GROUPS, 2 * width), nn.ReLU()
        self.cls = nn.Linear(2 * width, classes)

    def maps(self, x):
        x = self.root(self.fold(x))
        return self.relu(self.norm(self.block2(self.block1(x))))


# --- BiT-S-R50x1 --------------------------------------------------------------------------------


class StdConv2d(nn.Conv2d):
    """A convolution whose filters are each shifted and scaled to mean 0 and variance 1 (Qiao et al. 2019)."""

    def forward(self, x):
        variance, mean = torch.var_mean(self.weight, (1, 2, 3), correction=0, keepdim=True)
        weight = (self.weight - mean) / torch.sqrt(variance + 1e-10)  # 1e-10 as in the published network
        return F.conv2d(x, weight, self.bias, self.stride, self.padding)


class BiT(_Backbone):
    """ResNet-50v2 of width 1 with GroupNorm of 32 groups and standardised filters; its last layer starts at zero.

    Attributes are named as the arrays of the published file are (`npz_name`). Published input: 224 x 224 pixels.
    """

    UNITS = (3, 4, 6, 3)

    def __init__(self, classes):
        super().__init__()
        conv = lambda a, b, kernel=1, stride=1: StdConv2d(a, b, kernel, stride, kernel // 2, bias=False)
        self.root_block = conv(3, 64, 7, 2)
        # The published network pads with zeros before it pools; padding inside the pooling would be with -infinity.
        self.pool = nn.Sequential(nn.ConstantPad2d(1, 0.0), nn.MaxPool2d(3, 2))
        before = 64
        for k, units in enumerate(self.UNITS):
            middle, after, block = 64 * 2**k, 256 * 2**k, nn.Sequential()
            for unit in range(units):
                stride = 2 if unit == 0 and k > 0 else 1
                convs = conv(before, middle), conv(middle, middle, 3, stride), conv(middle, after)
                proj = conv(before, after, 1, stride) if unit == 0 else None
                block.add_module(f"unit{unit + 1:02d}", _Residual(convs, 32, proj))
                before = after
            self.add_module(f"block{k + 1}", block)
        self.norm, self.relu, self.cls = nn.GroupNorm(32, before), nn.ReLU(), nn.Linear(before, classes)
        nn.init.zeros_(self.cls.weight)
        nn.init.zeros_(self.cls.bias)

    def maps(self, x):
        x = self.pool(self.root_block(x))
        for k in range(len(self.UNITS)):
            x = self.get_submodule(f"block{k + 1}")(x)
        return self.relu(self.norm(x))


_ENDINGS = {"conv.weight": "standardized_conv2d/kernel", "norm.weight": "group_norm/gamma",
            "norm.bias": "group_norm/beta", "proj.weight": "proj/standardized_conv2d/kernel",
            "root_block.weight": "root_block/standardized_conv2d/kernel", "cls.weight": "head/conv2d/kernel",
            "cls.bias": "head/conv2d/bias"}  # fmt: skip


def npz_name(key):
    """The published name of a parameter of BiT: block1.unit01.a.conv.weight is
    resnet/block1/unit01/a/standardized_conv2d/kernel."""
    *path, module, kind = key.split(".")
    return "/".join(["resnet", *path, _ENDINGS[f"{module}.{kind}"]])


def load_npz(model, path):
    """A BiT with the published weights in an .npz file; returns it.

    The head in the file is taken if it is of as many classes as the model, and left out otherwise. Raises UserError,
    naming the array, if one is missing, has another shape, or holds what is no finite number.
    """
    if not isinstance(model, BiT):
        raise UserError(f"{path} would be the weights of BiT-S-R50x1: --backbone bit takes them")
    arrays, own = _arrays(path), model.state_dict()
    head = arrays.get(npz_name("cls.bias"))
    if head is None or head.shape != own["cls.bias"].shape:
        own = {key: value for key, value in own.items() if not key.startswith("cls.")}
    weights = {key: _weight(path, arrays, npz_name(key), value) for key, value in own.items()}
    model.load_state_dict(weights, strict=False)
    return model


def _arrays(path):
    """{name: array} of an .npz file. Some files number their convolutions, standardized_conv2d_17; ours do not."""
    try:
        with numpy.load(path, allow_pickle=False) as file:
            return {re.sub(r"(standardized_conv2d)_\d+", r"\1", name): file[name] for name in file.files}
    except FileNotFoundError:
        raise UserError(f"no weights at {path}; BiT-S-R50x1.npz is meant, from storage.googleapis.com/bit_models") \
            from None
    except Exception:  # numpy and zipfile raise half a dozen kinds for damaged and foreign files
        raise UserError(f"{path} cannot be read as an .npz file of weights: damaged, or another kind of file") from None


def _weight(path, arrays, name, own):
    """The array of this name as a float32 tensor shaped like `own`; kernels are (height, width, in, out) in files."""
    if name not in arrays:
        raise UserError(f"{path} has no array {name}; it is not a file of BiT-S-R50x1")
    shape = tuple(own.shape)
    if len(shape) > 1:
        out, into, *size = (*shape, 1, 1)[:4]
        shape = (*size, into, out)
    array = arrays[name]
    if array.shape != shape:
        raise UserError(f"{path}: {name} should have the shape {shape} and has {array.shape}")
    if array.dtype.kind != "f" or not numpy.isfinite(array).all():
        raise UserError(f"{path}: {name} holds values that are no finite numbers")
    array = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array
    return torch.from_numpy(array.astype(numpy.float32, order="C")).reshape(own.shape)


# --- torchvision's ------------------------------------------------------------------------------


class Torchvision(_Backbone):
    """A classifier of torchvision by its name, with random weights, cut in two before its last pooling.

    The network is traced, which shows every call of a module: one that torchvision calls several times (the ReLU of a
    residual block) or that is only a function there gets a module for each call, and nothing is done in place. Images
    are brought from [-1, 1] to the mean and deviation that torchvision's weights were trained with. Raises UserError
    if the network has no `fc` or `classifier`, or cannot be traced or cut.

    frozen: BatchNorm keeps its running averages also in training, as is usual for pretrained weights. Without, the
    images of a batch that is trained on change each other's logits where the network has BatchNorm.
    """

    def __init__(self, classes, name, frozen=False):
        super().__init__()
        model = torchvision.models.get_model(name, weights=None, num_classes=classes).eval()
        if not (hasattr(model, "fc") or hasattr(model, "classifier")):
            raise UserError(f"torchvision's {name} has neither fc nor classifier as its head; take a network that has")
        try:
            graph = _Tracer().trace(model)
            _separate(model, graph)
            below, above = _cut(model, graph)
        except Exception as error:  # tracing fails in as many ways as Python code can
            raise UserError(f"torchvision's {name} cannot be cut into maps and head: {error}") from None
        self.body, self.top = fx.GraphModule(model, below), fx.GraphModule(model, above)
        self.norms = [part for part in self.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
        self.frozen, self.rows_independent = frozen, frozen or not self.norms
        mean, std = (torch.tensor(values).reshape(3, 1, 1) for values in (MEAN, STD))
        self.register_buffer("scale", 0.5 / std, persistent=False)
        self.register_buffer("shift", (0.5 - mean) / std, persistent=False)
        self.train()

    def maps(self, x):
        return self.body(x * self.scale + self.shift)

    def head(self, maps):
        return self.top(maps)

    def train(self, mode=True):
        super().train(mode)
        for norm in self.norms if self.frozen else ():
            norm.eval()
        return self


class _Tracer(fx.Tracer):
    def is_leaf_module(self, module, path):
        # StochasticDepth reads whether it is in training; traced through, it would stay in evaluation for good.
        return isinstance(module, StochasticDepth) or super().is_leaf_module(module, path)


def _separate(model, graph):
    """Give every call of a ReLU in the graph a module of its own, and do nothing in place."""
    taken = set()
    for node in list(graph.nodes):
        again = node.op == "call_function" and node.target in (F.relu, torch.relu)
        if node.op == "call_module":
            module = model.get_submodule(node.target)
            if hasattr(module, "inplace"):
                module.inplace = False
            again = isinstance(module, nn.ReLU) and node.target in taken
            taken.add(node.target)
        if again:
            name = f"own_relu{len(taken)}"
            taken.add(name)
            model.add_module(name, nn.ReLU())
            with graph.inserting_before(node):
                node.replace_all_uses_with(graph.call_module(name, (node.all_input_nodes[0],)))
            graph.erase_node(node)
        elif node.target is operator.iadd:
            node.target = operator.add


def _cut(model, graph):
    """Two graphs: from the images to what the last average pooling is given, and from there to the logits."""

    def pools(node):
        if node.op == "call_module":
            return isinstance(model.get_submodule(node.target), nn.AdaptiveAvgPool2d)
        return node.target in (F.adaptive_avg_pool2d, "mean")

    found = [node for node in graph.nodes if pools(node)]
    if not found:
        raise ValueError("it has no average pooling")
    maps = found[-1].all_input_nodes[0]
    below, above, copies, in_head = fx.Graph(), fx.Graph(), {}, False
    for node in graph.nodes:
        copies[node] = (above if in_head else below).node_copy(node, copies.__getitem__)
        if node is maps:
            below.output(copies[node])
            copies, in_head = {maps: above.placeholder("maps")}, True
    below.lint()
    above.lint()
    return below, above


def load_torchvision(model, path):
    """A Torchvision backbone with the published weights in a .pth file of the same network; returns it.

    A last layer of another number of classes is left as it is in the model. Raises UserError as storage.load_weights
    does, and where the file is no state dict.
    """
    given, own = load_checkpoint(path), model.state_dict()
    weights = {}
    for key, value in own.items():
        new = given.get(key.split(".", 1)[1], value if key.endswith("num_batches_tracked") else None)
        other = key.startswith("top.") and new is not None and new.shape[1:] == value.shape[1:]
        weights[key] = value if other and new.shape != value.shape else new
    return load_weights(model, {key: value for key, value in weights.items() if value is not None})


def classes_in(weights):
    """How many classes published weights tell apart, by the last layer's bias; 0 if they end with something else."""
    return (*getattr(list(weights.values())[-1], "shape", ()), 0)[0]


# --- by name ------------------------------------------------------------------------------------

BACKBONES = {"small": SmallResNet, "bit": BiT}


def build(name, /, classes, **settings):
    """A freshly initialised backbone: one of BACKBONES, or a classifier of torchvision by its name there.

    settings: width of `small`, frozen of torchvision's. Raises UserError for a name that neither has, or others.
    """
    if name in BACKBONES:
        return make(BACKBONES[name], classes, **settings)
    if name not in torchvision.models.list_models(module=torchvision.models):
        raise UserError(f"no backbone is called {name!r}; there are {', '.join(BACKBONES)} and torchvision's "
                        "classifiers, such as resnet18, resnet50, densenet121, mobilenet_v3_small, efficientnet_b0")
    return make(Torchvision, classes, name, **settings)


def restore(state):
    """The backbone in a checkpoint of part 5 or 6, in evaluation mode; UserError if it does not say which it is."""
    made, settings, weights = model_in(state)
    if made is None or "classes" not in settings:
        raise UserError("this checkpoint does not say which backbone it is of, and for how many classes")
    return load_weights(build(made, **settings), weights).eval()
