"""Small bugs for the tokenizer: name, file, what the source says, what the mutant says."""

MODEL = "_model.py"

# fmt: off
MUTANTS = [
    ("decode without its convolution", MODEL, "self.decoder(self.post_quant_conv(quantized.contiguous()))", "self.decoder(self.quant_conv(quantized.contiguous()))"),
    ("encode without its convolution", MODEL, "return self.quantize.encode(self.features(images))", "return self.quantize.encode(self.encoder(images))"),
    ("encode flips the grid", MODEL, "return self.quantize.encode(self.features(images))", "return self.quantize.encode(self.features(images)).transpose(1, 2)"),
    ("encode counts", MODEL, "return self.quantize.encode(self.features(images))", "return self.quantize(self.features(images)).indices"),
    ("encoder detached", MODEL, "latents: Tensor = self.quant_conv(self.encoder(images))", "latents: Tensor = self.quant_conv(self.encoder(images).detach())"),
    ("decoder sees the latents", MODEL, "self._to_images(quantized), indices", "self._to_images(self.features(images)), indices"),
    ("latents centered over the batch", MODEL, "quantized, indices, loss, terms = self.quantize(self.features(images))",
     "z = self.features(images)\n        quantized, indices, loss, terms = self.quantize(z - z.mean(dim=0))"),
]
