"""Make the quickstart's model: a byte-level tokenizer and a small Llama, from the corpus alone.

    python examples/quickstart/pretrain.py --out examples/quickstart/model

The same seed, steps and threads give the same model on the same machine. With `--minutes` the
run ends by the clock, wherever its schedule is then brought to its end, and is not repeatable.
"""

import argparse
import math
import time
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import torch
from corpus import documents
from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers, processors, trainers
from tokenizers.models import BPE
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

BOS, EOS, PAD = "<bos>", "<eos>", "<pad>"
# Words without their space, single digits and an opening brace by itself: a word has the same
# tokens in a sentence and in JSON, so that copying it is the same few tokens again.
WORDS = r'\{"?|\d|[^\W\d]+|[^\w\s{]+|\s'
IGNORED = -100
HELD_OUT = 1_000_000  # added to the seed


def train_tokenizer(seed: int, vocabulary: int, samples: int = 20_000) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer that begins every text with the begin token."""
    tokenizer = Tokenizer(BPE())
    split = pre_tokenizers.Split(Regex(WORDS), behavior="isolated")
    bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, bytes_only])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(islice(documents(seed), samples), trainer)
    begin = tokenizer.token_to_id(BOS)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, begin)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        clean_up_tokenization_spaces=False,
        model_max_length=256,
    )


def make_model(tokenizer: PreTrainedTokenizerFast, hidden: int, layers: int) -> LlamaForCausalLM:
    """A Llama with fresh weights."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=hidden * 11 // 4,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 32,
        num_key_value_heads=hidden // 32,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        initializer_range=0.04,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def rows(
    tokenizer: PreTrainedTokenizerFast, texts: Iterator[str], length: int
) -> Iterator[list[int]]:
    """Rows of at most `length` ids, each of as many whole documents as fit."""
    row: list[int] = []
    while True:
        for ids in tokenizer(list(islice(texts, 1024)))["input_ids"]:
            document = [*ids, tokenizer.eos_token_id][:length]
            if len(row) + len(document) > length:
                yield row
                row = []
            row += document


def batch_of(rows_in: Iterable[list[int]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and labels `[B, T]`, padded at the right, where labels are ignored."""
    taken = list(rows_in)
    longest = max(map(len, taken))
    ids = torch.tensor([row + [pad] * (longest - len(row)) for row in taken])
    labels = torch.tensor([row + [IGNORED] * (longest - len(row)) for row in taken])
    return ids, labels


def rate(progress: float, peak: float, warm: float = 0.04) -> float:
    """Learning rate at a share of the run: a short rise, a plateau, a linear fall to nothing."""
    if progress < warm:
        return peak * progress / warm
    return peak * min(1.0, (1.0 - progress) / 0.5)


@torch.no_grad()
def exact_match(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, seed: int, count: int = 200
) -> float:
    """Share of held-out sentences whose JSON object is right in every token, 0 to 1."""
    brace = tokenizer.convert_tokens_to_ids('{"')
    texts = (text for text in documents(seed + HELD_OUT) if text.count('{"') == 1)
    right = 0
    for ids in tokenizer(list(islice(texts, count)))["input_ids"]:
        row = torch.tensor([[*ids, tokenizer.eos_token_id]])
        start = ids.index(brace) + 1
        guess = model(input_ids=row[:, :-1]).logits.argmax(-1)
        right += bool((guess[0, start - 1 :] == row[0, start:]).all())
    return right / count


def train(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, options: argparse.Namespace
) -> None:
    """Train in place, printing how it goes."""
    stream = rows(tokenizer, documents(options.seed + 1), options.length)
    decayed = [p for p in model.parameters() if p.dim() > 1]
    plain = [p for p in model.parameters() if p.dim() == 1]
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98))
    begin, step, progress = time.monotonic(), 0, 0.0
    while progress < 1.0:
        for group in optimizer.param_groups:
            group["lr"] = rate(progress, options.lr)
        ids, labels = batch_of(islice(stream, options.batch), tokenizer.pad_token_id)
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        passed = time.monotonic() - begin
        by_clock = passed / 60 / options.minutes if options.minutes else 0.0
        progress = max(step / options.steps, by_clock)
        if step % 200 == 0 or progress >= 1.0:
            match = exact_match(model, tokenizer, options.seed)
            print(
                f"step {step}  {passed:.0f} s  loss {loss.item():.3f}  JSON exact {match:.1%}",
                flush=True,
            )


def main() -> None:
    """Train the tokenizer and the model, and save both."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "model")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=4200)
    parser.add_argument("--minutes", type=float, default=math.inf, help="end by the clock")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=24, help="rows a step")
    parser.add_argument("--length", type=int, default=128, help="tokens a row")
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--vocabulary", type=int, default=1280)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    tokenizer = train_tokenizer(options.seed, options.vocabulary)
    model = make_model(tokenizer, options.hidden, options.layers)
    print(f"{len(tokenizer)} tokens, {model.num_parameters():,} parameters")
    train(model, tokenizer, options)
    model.save_pretrained(options.out)
    tokenizer.save_pretrained(options.out)
    print(f"saved in {options.out}")


if __name__ == "__main__":
    main()
