// Scripts that write words without spaces between them: a term is found anywhere in them.
const UNSPACED = /[\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}\p{Script=Thai}\p{Script=Lao}\p{Script=Khmer}\p{Script=Myanmar}]/u;

// A test of lower-case text: whether it has all the words that were typed, or words that begin with them.
function finder(typed) {
  const tests = typed.toLowerCase().split(/\s+/).filter(Boolean).map((term) => {
    const begin = UNSPACED.test(term) ? "" : "(^|[^\\p{L}\\p{N}])";
    return new RegExp(begin + term.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"), "u");
  });
  return (text) => tests.every((test) => test.test(text));
}

// The quarter of the numbered items with the most doubt, at least one.
function doubtful(doubts) {
  const order = [...doubts.keys()].sort((a, b) => doubts[b] - doubts[a]);
  return new Set(order.slice(0, Math.ceil(order.length / 4)));
}
