"""What nine families are made of, written by hand: what views that are derived must come to, runs and order apart."""

from abridged.storage.view import Matrix, Part, View


def gpt2(model) -> View:
    config = model.config
    tied = ("lm_head",) if hasattr(model, "lm_head") else ()
    width, inner = config.n_embd, config.n_inner or 4 * config.n_embd
    matrices = [
        Matrix("transformer.wte", "embedding", "embedding", None, config.vocab_size, width, tied=tied),
        Matrix("transformer.wpe", "embedding", "positions", None, config.n_positions, width),
    ]
    for i in range(config.n_layer):
        h = f"transformer.h.{i}"
        matrices += [
            Matrix(f"{h}.attn.c_attn", "linear", "attention", i, 3 * width, width, transposed=True, fused=3),
            Matrix(f"{h}.attn.c_proj", "linear", "attention", i, width, width, transposed=True),
            Matrix(f"{h}.mlp.c_fc", "linear", "ffn", i, inner, width, transposed=True),
            Matrix(f"{h}.mlp.c_proj", "linear", "ffn", i, width, inner, transposed=True, input="asymmetric"),
        ]
    layers = [f"transformer.h.{i}" for i in range(config.n_layer)]
    parts = []
    for i, h in enumerate(layers):
        parts += [
            Part(f"{h}.attn", "attention", i, (f"{h}.attn.c_attn",), f"{h}.attn.c_proj", config.n_head),
            Part(f"{h}.mlp.c_proj", "ffn", i, (f"{h}.mlp.c_fc",), f"{h}.mlp.c_proj", inner),
        ]
    return View(
        model_type="gpt2",
        hidden_size=width,
        layers=config.n_layer,
        heads=config.n_head,
        context=config.n_positions,
        matrices=matrices,
        attentions=[f"{h}.attn" for h in layers],
        positions=["transformer.wpe"],
        blocks=layers,
        parts=parts,
        norms=[*(f"{h}.{norm}" for h in layers for norm in ("ln_1", "ln_2")), "transformer.ln_f"],
        readers=["score"] if hasattr(model, "score") else [],
    )


def llama(model) -> View:
    config = model.config
    width, inner = config.hidden_size, config.intermediate_size
    head = getattr(config, "head_dim", None) or width // config.num_attention_heads
    queries, keys = config.num_attention_heads * head, config.num_key_value_heads * head
    headed = hasattr(model, "lm_head")
    tied = ("lm_head",) if headed and config.tie_word_embeddings else ()
    matrices = [Matrix("model.embed_tokens", "embedding", "embedding", None, config.vocab_size, width, tied=tied)]
    for i in range(config.num_hidden_layers):
        layer = f"model.layers.{i}"
        matrices += [
            Matrix(f"{layer}.self_attn.q_proj", "linear", "attention", i, queries, width),
            Matrix(f"{layer}.self_attn.k_proj", "linear", "attention", i, keys, width),
            Matrix(f"{layer}.self_attn.v_proj", "linear", "attention", i, keys, width),
            Matrix(f"{layer}.self_attn.o_proj", "linear", "attention", i, width, queries),
            Matrix(f"{layer}.mlp.gate_proj", "linear", "ffn", i, inner, width),
            Matrix(f"{layer}.mlp.up_proj", "linear", "ffn", i, inner, width),
            Matrix(f"{layer}.mlp.down_proj", "linear", "ffn", i, width, inner),
        ]
    if headed and not tied:
        matrices.append(Matrix("lm_head", "linear", "head", None, config.vocab_size, width))
    layers = [f"model.layers.{i}" for i in range(config.num_hidden_layers)]
    parts = []
    for i, layer in enumerate(layers):
        attention, mlp = f"{layer}.self_attn", f"{layer}.mlp"
        readers = (f"{attention}.q_proj", f"{attention}.k_proj", f"{attention}.v_proj")
        gated = (f"{mlp}.gate_proj", f"{mlp}.up_proj")
        parts += [
            Part(attention, "attention", i, readers, f"{attention}.o_proj", config.num_key_value_heads),
            Part(f"{mlp}.down_proj", "ffn", i, gated, f"{mlp}.down_proj", inner),
        ]
    norms = [f"{layer}.{norm}" for layer in layers for norm in ("input_layernorm", "post_attention_layernorm")]
    return View(
        model_type=config.model_type,
        hidden_size=width,
        layers=config.num_hidden_layers,
        heads=config.num_attention_heads,
        context=config.max_position_embeddings,
        matrices=matrices,
        attentions=[f"{layer}.self_attn" for layer in layers],
        blocks=layers,
        parts=parts,
        norms=[*norms, "model.norm"],
        readers=["score"] if hasattr(model, "score") else [],
    )


#: Linear layers between the encoder and what is particular to a task; they are quantised as the encoder's are.
_POOLERS = ("pooler.dense", "cls.predictions.transform.dense", "classifier.dense", "lm_head.dense")
#: What reads a pooler: then its rows are units of its own.
_POOLED = {"pooler.dense": "classifier", "classifier.dense": "classifier.out_proj"}
#: Layers before the tied head, which write what it compares with embeddings, and their norms.
_TRANSFORMS = {
    "cls.predictions.transform.dense": "cls.predictions.transform.LayerNorm",
    "lm_head.dense": "lm_head.layer_norm",
}
#: Output layers for the labels of tokens, and for where answers begin and end.
_READERS = ("classifier", "qa_outputs")
#: Output layers that read the token embedding.
_TIED_HEADS = ("cls.predictions.decoder", "lm_head.decoder")


def bert(model) -> View:
    config = model.config
    base = getattr(model, "base_model_prefix", "")
    prefix = f"{base}." if hasattr(model, base) else ""
    modules = dict(model.named_modules())
    heads = tuple(name for name in _TIED_HEADS if name in modules)
    width, inner, e = config.hidden_size, config.intermediate_size, f"{prefix}embeddings"
    matrices = [
        Matrix(f"{e}.word_embeddings", "embedding", "embedding", None, config.vocab_size, width, tied=heads),
        Matrix(f"{e}.position_embeddings", "embedding", "positions", None, config.max_position_embeddings, width),
        Matrix(f"{e}.token_type_embeddings", "embedding", "positions", None, config.type_vocab_size, width),
    ]
    for i in range(config.num_hidden_layers):
        layer = f"{prefix}encoder.layer.{i}"
        matrices += [
            *(
                Matrix(f"{layer}.attention.{name}", "linear", "attention", i, width, width)
                for name in ("self.query", "self.key", "self.value", "output.dense")
            ),
            Matrix(f"{layer}.intermediate.dense", "linear", "ffn", i, inner, width),
            Matrix(f"{layer}.output.dense", "linear", "ffn", i, width, inner, input="asymmetric"),
        ]
    poolers = [path for name in _POOLERS for path in (name, prefix + name) if path in modules]
    matrices += [Matrix(path, "linear", "pooler", None, width, width) for path in dict.fromkeys(poolers)]
    layers = [f"{prefix}encoder.layer.{i}" for i in range(config.num_hidden_layers)]
    parts = []
    for i, layer in enumerate(layers):
        attention, output = f"{layer}.attention", f"{layer}.output.dense"
        inputs = tuple(f"{attention}.self.{name}" for name in ("query", "key", "value"))
        parts += [
            Part(f"{attention}.self", "attention", i, inputs, f"{attention}.output.dense", config.num_attention_heads),
            Part(output, "ffn", i, (f"{layer}.intermediate.dense",), output, inner),
        ]
    for name, reader in _POOLED.items():
        pooler = next((path for path in (name, prefix + name) if path in modules and reader in modules), None)
        if pooler is not None:
            parts.append(Part(reader, "pooler", None, (pooler,), reader, width))
    transforms = [path for path in _TRANSFORMS if path in modules]
    norms = [f"{layer}.{part}.LayerNorm" for layer in layers for part in ("attention.output", "output")]
    pooled = {part.output for part in parts}
    return View(
        model_type=config.model_type,
        hidden_size=width,
        layers=config.num_hidden_layers,
        heads=config.num_attention_heads,
        # RoBERTa counts positions from the one after the padding's
        context=config.max_position_embeddings - (config.pad_token_id + 1 if config.model_type == "roberta" else 0),
        matrices=matrices,
        attentions=[f"{layer}.attention.self" for layer in layers],
        positions=[f"{e}.position_embeddings", f"{e}.token_type_embeddings"],
        blocks=layers,
        parts=parts,
        norms=[f"{e}.LayerNorm", *norms, *(_TRANSFORMS[path] for path in transforms)],
        writers=transforms,
        readers=[path for path in _READERS if path not in pooled and hasattr(modules.get(path), "weight")],
    )


#: Of each kind of layer, its attention modules.
_SIDES = {"encoder": ("self_attn",), "decoder": ("self_attn", "encoder_attn")}


def bart(model) -> View:
    config = model.config
    width = config.d_model
    readers = ("model.encoder.embed_tokens", "model.decoder.embed_tokens", "lm_head")
    matrices = [Matrix("model.shared", "embedding", "embedding", None, config.vocab_size, width, tied=readers)]
    blocks: list[str] = []
    attentions: list[str] = []
    parts: list[Part] = []
    modules = dict(model.named_modules())
    norms = [f"model.{side}.{norm}" for side in _SIDES for norm in ("layernorm_embedding", "layer_norm")]
    for side, kinds in _SIDES.items():
        inner = getattr(config, f"{side}_ffn_dim")
        for i in range(getattr(config, f"{side}_layers")):
            block, layer = f"model.{side}.layers.{i}", len(blocks)
            for part in kinds:
                attentions.append(f"{block}.{part}")
                matrices += [
                    Matrix(f"{block}.{part}.{name}_proj", "linear", "attention", layer, width, width)
                    for name in ("q", "k", "v", "out")
                ]
                inputs = tuple(f"{block}.{part}.{name}_proj" for name in "qkv")
                heads = getattr(config, f"{side}_attention_heads")
                parts.append(Part(f"{block}.{part}", "attention", layer, inputs, f"{block}.{part}.out_proj", heads))
                norms.append(f"{block}.{part}_layer_norm")
            matrices += [
                Matrix(f"{block}.fc1", "linear", "ffn", layer, inner, width),
                Matrix(f"{block}.fc2", "linear", "ffn", layer, width, inner, input="asymmetric"),
            ]
            parts.append(Part(f"{block}.fc2", "ffn", layer, (f"{block}.fc1",), f"{block}.fc2", inner))
            norms.append(f"{block}.final_layer_norm")
            blocks.append(block)
    return View(
        model_type=config.model_type,
        hidden_size=width,
        layers=len(blocks),
        heads=config.decoder_attention_heads,
        context=config.max_position_embeddings,
        matrices=matrices,
        attentions=attentions,
        positions=["model.encoder.embed_positions", "model.decoder.embed_positions"],
        blocks=blocks,
        parts=parts,
        norms=[path for path in norms if path in modules],
    )


EXPECTED = {
    "gpt2": gpt2,
    "llama": llama,
    "mistral": llama,
    "qwen2": llama,
    "bert": bert,
    "roberta": bert,
    "bart": bart,
    "mbart": bart,
    "pegasus": bart,
}
