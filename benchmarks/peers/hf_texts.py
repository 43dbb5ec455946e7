"""Hugging Face's Trainer on a language model, as its guide to text classification has it.

As shipped: the defaults of TrainingArguments, padded by batch and validated each epoch, as in the guide. Best flags:
bf16, batches of texts of like length, fused AdamW at the job's learning rate under a cosine, a data loader's worker, no
checkpoints, no bars.
"""

import tempfile
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)

from .given import Job, run
from .given_texts import texts_of
from .hf_trainer import accuracy


def train(job: Job) -> nn.Module:
    """Train and validate, epoch by epoch."""
    tokenizer = AutoTokenizer.from_pretrained(job.base)
    model: Any = AutoModelForSequenceClassification.from_pretrained(job.base, num_labels=len(job.classes))
    if job.head_only:
        model.base_model.requires_grad_(False)
    flags: dict[str, Any] = {}
    if job.best_flags:
        flags = {
            "bf16": True,
            "optim": "adamw_torch_fused",
            "learning_rate": job.learning_rate,
            "lr_scheduler_type": "cosine",
            "warmup_steps": 0.1,  # below 1: a share of the steps
            "weight_decay": 0.05,
            "train_sampling_strategy": "group_by_length",
            "dataloader_num_workers": job.workers,
            "dataloader_persistent_workers": job.workers > 0,
            "save_strategy": "no",
            "disable_tqdm": True,
        }
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            num_train_epochs=job.epochs,
            per_device_train_batch_size=job.batch_size,
            per_device_eval_batch_size=job.batch_size,
            eval_strategy="epoch",
            report_to="none",
            use_cpu=not torch.cuda.is_available(),
            seed=job.seed,
            **flags,
        )
        Trainer(
            model=model,
            args=arguments,
            data_collator=DataCollatorWithPadding(tokenizer),
            train_dataset=tokens_of(job, "train", tokenizer),
            eval_dataset=tokens_of(job, "val", tokenizer),
            compute_metrics=accuracy,
        ).train()
    return model


def tokens_of(job: Job, split: str, tokenizer: Any) -> Any:
    """A list of what the model is given, tokenised once."""
    texts, labels = texts_of(job, split)
    tokens = tokenizer(texts, truncation=True, max_length=job.size)
    rows = zip(tokens["input_ids"], tokens["attention_mask"], labels, strict=True)
    return [{"input_ids": ids, "attention_mask": mask, "labels": label} for ids, mask, label in rows]


if __name__ == "__main__":
    run(train)
