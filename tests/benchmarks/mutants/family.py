"""Small bugs for the other quantizers and the wrappers: name, file, what the source says, what the mutant says."""

SCALAR, GUMBEL, LINEAR = "quantizers/_scalar.py", "quantizers/_gumbel.py", "quantizers/_linear.py"
INDEX, WRAP, REG = "quantizers/_index.py", "quantizers/_wrappers.py", "functional/_regularizers.py"

# fmt: off
MUTANTS = [
    ("FSQ: no shift of even levels", SCALAR, "0.5 * (count % 2 == 0)", "0.0 * (count % 2 == 0)"),
    ("FSQ: shift without atan", SCALAR, "torch.tanh(x + math.tan(offset / half))", "torch.tanh(x)"),
    ("FSQ: one level more", SCALAR, "(count - 1) * (1 - 1e-3) / 2", "count / 2"),
    ("FSQ: not scaled", SCALAR, "x / (count // 2) for x, count", "x for x, count"),
    ("FSQ: gradient past the bound", SCALAR, "functional.straight_through(soft,", "functional.straight_through(z,"),
    ("FSQ: digits with the next step", SCALAR, "            step *= count\n", "            step += count\n"),
    ("FSQ: decode by the wrong base", SCALAR, "            indices = indices // count\n", "            indices = indices // (count + 1)\n"),
    ("LFQ: entropy's sign", SCALAR, "(entropies.sample - self.diversity_weight", "(-entropies.sample + self.diversity_weight"),
    ("LFQ: diversity ignored", SCALAR, "entropies.sample - self.diversity_weight * entropies.batch", "entropies.sample"),
    ("LFQ: bits in the other order", SCALAR, "(z > 0).long() * self._powers(z.device)", "(z > 0).long() * self._powers(z.device).flip(0)"),
    ("LFQ: zero and one", SCALAR, "return (bits > 0).float() * 2 - 1", "return (bits > 0).float()"),
    ("LFQ: commitment not weighted", SCALAR, "loss = self.commitment_weight * commitment", "loss = commitment"),
    ("entropy: half the temperature", REG, "(4 / temperature)", "(2 / temperature)"),
    ("entropy: sum over vectors", REG, "torch.where(live[:, None], bits, 0).sum() / count", "torch.where(live[:, None], bits, 0).sum()"),
    ("SimVQ: codebook detached", LINEAR, "entries = F.embedding(indices, codebook)", "entries = F.embedding(indices, codebook.detach())"),
    ("SimVQ: weights swapped", LINEAR, "self.commitment_weight * commitment + self.codebook_weight * distance", "self.codebook_weight * commitment + self.commitment_weight * distance"),
    ("SimVQ: decodes raw entries", LINEAR, "        return F.embedding(indices, self.codebook)", "        return F.embedding(indices, self.embedding.weight)"),
    ("index: term left out", INDEX, "        loss = loss + self.index_weight * mean_square(clean, chosen, seen)\n", ""),
    ("index: entries detached", INDEX, "codebook = mean_square(clean.detach(), entries, seen)", "codebook = mean_square(clean.detach(), entries.detach(), seen)"),
    ("Gumbel: divergence's sign", GUMBEL, "(log_p.exp() * log_p).sum(dim=1) + math.log", "-(log_p.exp() * log_p).sum(dim=1) + math.log"),
    ("Gumbel: weight ignored", GUMBEL, "self.kl_weight * kl, terms", "kl, terms"),
    ("Gumbel: noise in evaluation", GUMBEL, "        if self.training:\n            weights = F.gumbel", "        if True:\n            weights = F.gumbel"),
    ("Gumbel: least likely", GUMBEL, "weights.argmax(dim=1)", "weights.argmin(dim=1)"),
    ("projected: no projection back in decode", WRAP, "return self._project_out(self.quantizer._entries(indices))", "return self._project_in(self.quantizer._entries(indices))"),
    ("projected: encode without projection", WRAP, "return self.quantizer._encode(self._project_in(z), live)", "return self.quantizer._encode(z[:, : self.quantizer.dim], live)"),
    ("residual: not detached", WRAP, "torch.where(own[:, None], out.quantized.detach(), 0)", "torch.where(own[:, None], out.quantized, 0)"),
    ("residual: added", WRAP, "residual = residual - torch.where", "residual = residual + torch.where"),
    ("residual: every stage sees the input", WRAP, "torch.where(own[:, None], residual, 0), own)", "torch.where(own[:, None], z, 0), own)"),
    ("residual: mean of losses", WRAP, "torch.stack([out.loss for out in outputs]).sum()", "torch.stack([out.loss for out in outputs]).mean()"),
    ("residual: last stage not decoded", WRAP, "enumerate(self.quantizers[1:], start=1)", "enumerate(self.quantizers[1:-1], start=1)"),
    ("residual: encode adds", WRAP, "z = z - stage._entries(indices[-1])", "z = z + stage._entries(indices[-1])"),
    ("grouped: sum of losses", WRAP, "torch.stack([out.loss for out in outputs]).mean(),", "torch.stack([out.loss for out in outputs]).sum(),"),
    ("grouped: parts in the other order", WRAP, "for n, part in enumerate(self.quantizers)], dim=1)", "for n, part in reversed(list(enumerate(self.quantizers)))], dim=1)"),
]
