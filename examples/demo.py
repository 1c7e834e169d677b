"""What headwise does, on a real model: compare sentences by meaning, then look inside the attention.

Run by ``make demo``, or ``python examples/demo.py`` where headwise is installed. The first run fetches MiniLM
(91 MB).
"""

import sys
import time

import headwise
from headwise._fetch import fetch

SENTENCES = [
    "The cat is sleeping on the sofa.",
    "A kitten naps on the couch.",
    "The stock market fell sharply today.",
    "Shares lost a lot of their value this afternoon.",
    "How do I bake sourdough bread?",
]
LOOKED_INTO = "a dog ate the food because it was hungry"
WORD = "it"
SHOWN_LINKS = [(5, 11), (3, 1)]


def print_similarities(encoder: headwise.TextEncoder) -> None:
    """Embed the sentences and print the cosine of each pair."""
    start = time.perf_counter()
    embeddings = encoder.encode(SENTENCES, normalize_embeddings=True)
    took = time.perf_counter() - start
    print(f"{len(SENTENCES)} sentences -> {embeddings.shape} {embeddings.dtype} in {1000 * took:.1f} ms\n")

    cosines = embeddings @ embeddings.T
    width = max(map(len, SENTENCES)) + 3
    print(" " * width + "".join(f"{number:>6}" for number in range(1, len(SENTENCES) + 1)))
    for number, (sentence, row) in enumerate(zip(SENTENCES, cosines, strict=True), start=1):
        print(f"{number} {sentence:<{width - 2}}" + "".join(f"{cosine:6.2f}" for cosine in row))


def print_links(encoder: headwise.TextEncoder) -> None:
    """Print the word that each head links WORD to, and how strongly."""
    # Heads with nothing to say rest on [CLS], [SEP] or the word itself: links are to the other words.
    links = encoder.attentions(LOOKED_INTO).links(WORD)
    print(f'\n"{LOOKED_INTO}":\n{links}')
    print("\nCounted from 0:")
    for layer, head in SHOWN_LINKS:
        link = links[layer, head]
        print(f"  layer {layer} head {head:>2}: {WORD} -> {link.word} {link.weight:.2f}")


def main() -> None:
    """Fetch the model unless it is there, and print both parts."""
    folder = fetch("minilm", report=lambda line: print(line, file=sys.stderr, flush=True))
    start = time.perf_counter()
    encoder = headwise.TextEncoder.from_pretrained(folder)
    print(
        f"headwise {headwise.__version__} on {headwise.isa()}, {headwise.get_num_threads()} threads; "
        f"{folder.name} loaded in {1000 * (time.perf_counter() - start):.0f} ms"
    )
    print_similarities(encoder)
    print_links(encoder)


if __name__ == "__main__":
    main()
