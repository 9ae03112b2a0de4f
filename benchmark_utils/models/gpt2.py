"""GPT-2 by its former name; ``named.make_model`` makes every model."""
from benchmark_utils.models.named import make_model


def GPT2(vocab_size=50257, context_length=1024, n_layer=12, n_head=12,
         n_embd=768, seed=0):
    return make_model(
        "gpt2", vocab_size, seed, context_length=context_length,
        n_layer=n_layer, n_head=n_head, n_embd=n_embd,
    )


def activation_bytes(n_layer, n_embd):
    return 4 * 16 * (n_layer + 1) * n_embd
