"""Small bugs for the tokenizer: name, file, what the source says, what the mutant says."""

MODEL = "_model.py"

# fmt: off
MUTANTS = [
    ("decode without its convolution", MODEL, "self.decoder(self.post_quant_conv(quantized.contiguous()))", "self.decoder(self.quant_conv(quantized.contiguous()))"),
    ("encode without its convolution", MODEL, "latents = self.features(images)\n        return", "latents = self.encoder(images)\n        return"),
    ("encode flips the grid", MODEL, "return self.quantize.encode(latents)", "return self.quantize.encode(latents).transpose(1, 2)"),
    ("encode counts", MODEL, "return self.quantize.encode(latents)", "return self.quantize(latents).indices"),
    ("encoder detached", MODEL, "latents: Tensor = self.quant_conv(self.encoder(images))", "latents: Tensor = self.quant_conv(self.encoder(images).detach())"),
    ("decoder sees the latents", MODEL, "self._to_images(quantized), indices", "self._to_images(self.features(images)), indices"),
    ("latents centered over the batch", MODEL, "quantized, indices, loss, terms = self.quantize(self.features(images))",
     "z = self.features(images)\n        quantized, indices, loss, terms = self.quantize(z - z.mean(dim=0))"),
]
