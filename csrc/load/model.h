#pragma once

struct llama_model;
struct llama_model_loader;

// What the model says about its blocks whatever is left out of it: hparams.skip.model.
void llama_skip_read_model(llama_model_loader & ml, llama_model & model);
