"""Generated text on a terminal."""

import rich.text


def make_cell(
  prompt: str, trigger: str, text: str, *, perplexity: float
) -> rich.text.Text:
  """Returns a generation after its prompt, the trigger in colour."""
  cell = rich.text.Text()
  cell.append(f"perplexity {perplexity:.4g}\n", style="bold")
  cell.append(visible(prompt), style="dim")
  cell.append(visible(trigger), style="bold black on yellow")
  cell.append(visible(text))
  return cell


def visible(text: str) -> str:
  """Returns the text without characters that steer a terminal.

  A model of bytes generates escape sequences as readily as letters.
  """
  return "".join(
    c if c == "\n" or c.isprintable() else "\N{REPLACEMENT CHARACTER}"
    for c in text
  )
