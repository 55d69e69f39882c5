"""A CLIP model in a folder, small enough to be made in a test."""

import json
from pathlib import Path


def write_clip(folder: Path) -> None:
    """The smallest CLIP, which knows letters only; its embeddings all point more or less the same way."""
    import torch
    from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig

    letters = [chr(code) for code in range(33, 127)]
    tokens = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    start, end = len(tokens) - 2, len(tokens) - 1
    text = CLIPTextConfig(
        vocab_size=len(tokens), max_position_embeddings=24, bos_token_id=start, eos_token_id=end, **small
    )
    vision = CLIPVisionConfig(image_size=32, patch_size=16, **small)
    model = CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=8))
    with torch.no_grad():
        for weight in (model.text_projection.weight, model.visual_projection.weight):
            weight.abs_()
        for norm in (model.text_model.final_layer_norm, model.vision_model.post_layernorm):
            norm.bias += 1
    model.save_pretrained(folder)
    size = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    for name, data in {
        "vocab.json": {token: number for number, token in enumerate(tokens)},
        "tokenizer_config.json": {"tokenizer_class": "CLIPTokenizer"},
        "preprocessor_config.json": {"image_processor_type": "CLIPImageProcessor", **size},
    }.items():
        (folder / name).write_text(json.dumps(data))
    (folder / "merges.txt").write_text("#version: 0.2\n")
