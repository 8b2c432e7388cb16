#!/usr/bin/env bash
# All that makes mira-nano, from nothing: bash training/configs/mira_nano.sh [FOLDER], where the finished model is put. Some 16 hours on 2 cores with
# AVX512-BF16. Killed, the same command goes on where it stopped: what is finished is passed over, runs and latents go on from what is on disk.
set -euo pipefail
cd "$(dirname "$0")/../.."
out=${1:-workspace/models/mira-nano}
python=${PYTHON:-.venv/bin/python}
work=workspace

train() { "$python" -m training --config "training/configs/nano_$1.yaml" "${@:2}"; }
latents() { "$python" -m training precompute --model "$work/models/nano-$1" --out "$work/datasets/nano-$2" --clips "$3" --seed "$4" "${@:5}"; }
encoder=text-encoder
model() { # NAME, the run of its decoder, the run of its transformer
  "$python" -m training export --vae "$work/runs/nano-$2" --text-encoder "$work/runs/nano-$encoder" ${3:+--transformer "$work/runs/nano-$3"} --out "${4:-$work/models/nano-$1}"
}

train text_encoder
train vae
model base vae
latents base latents 9000 0
train transformer
model first vae transformer
train transformer_joint
model second vae transformer-joint
train transformer_frame
model third vae transformer-frame
train transformer_motion
model fourth vae transformer-motion
train transformer_more
model fifth vae transformer-more

for seed in 0 1; do
  latents fifth motions 8000 $seed --motions circles=2 bounces=1.5 rises=1.5 falls=1.5 "leaves and returns=1.5" hits=1.25 "moves left=0.75" "moves right=0.75"
done
train transformer_plan
model sixth vae transformer-plan

train vae_marks
moves=("passes behind a wall=0" "leaves and returns=0" hits=0 circles=0.7)
for seed in 0 1; do
  latents sixth cameras 8000 2$seed --moving-cameras 0.5 --motions circles=2 hits=1.5 bounces=1.2 rises=1.3 falls=1.3 "leaves and returns=1.2" "stays still=0.8"
  latents sixth pans 4000 3$seed --moving-cameras 1 --motions "${moves[@]}"
  latents sixth circles 2000 5$seed --moving-cameras 0 --motions bounces=0.1 "moves left=0" "moves right=0" rises=0.1 falls=0.1 "stays still=0" \
    "passes behind a wall=0" "leaves and returns=0.1" hits=0.1
done
mkdir -p "$work/datasets/nano-both"
ln -sf "$PWD/$work"/datasets/nano-{cameras,circles}/* "$work/datasets/nano-both/"
train transformer_marks lr_decay_steps=0 max_train_steps=2193
train transformer_marks lr_decay_steps=0 max_train_steps=3957 learning_rate=4.5e-4 "dataset=$work/datasets/nano-pans"
train transformer_marks lr_decay_steps=950 max_train_steps=4957 learning_rate=4.5e-4 "dataset=$work/datasets/nano-both"
train transformer_marks lr_decay_steps=1650 learning_rate=2.0e-4 ema_decay=0.998 "dataset=$work/datasets/nano-both"
model seventh vae-marks transformer-marks

for seed in 60 61; do
  latents seventh plain 6000 $seed --moving-cameras 0.5 --motions circles=2 hits=1.3 bounces=1.2 rises=1.3 falls=1.2 "leaves and returns=0.8" "stays still=0.7" "moves left=1.2" "moves right=1.2"
done
train transformer_plain "model=$work/models/nano-seventh"
model eighth vae-marks transformer-plain
train transformer_camera
model ninth vae-marks transformer-camera

train text_encoder_order
encoder=text-encoder-order
model order vae-marks transformer-camera
for seed in 70 71; do
  latents order middle 6000 $seed --moving-cameras 0.45 --motions circles=2.2 hits=2 bounces=1.1 rises=1.1 falls=1.1 "leaves and returns=0.9" \
    "stays still=0.7" "moves left=1.2" "moves right=1.2"
done
train transformer_order
model tenth vae-marks transformer-order

for seed in 80 81; do
  latents tenth moving 6000 $seed --moving-cameras 0.6 --motions circles=1.8 hits=1.8 bounces=1.3 rises=1.4 falls=1.1 "leaves and returns=1.1" \
    "stays still=0.8" "moves left=1.2" "moves right=1.2"
done
latents tenth moving 2000 82 --camera "zooms in" --motions circles=1.3
train transformer_moving
model eleventh vae-marks transformer-moving

train vae_stars
latents eleventh zoom 5000 90 --camera "zooms in" --motions circles=1.3 "stays still=1.2"
latents eleventh zoom 6000 91 --moving-cameras 0.4 --motions circles=1.3 hits=1.5 "passes behind a wall=2" bounces=1.2 rises=1.1 "leaves and returns=1.3"
train transformer_zoom lr_decay_steps=1200 max_train_steps=2500
train transformer_zoom
model twelfth vae-stars transformer-zoom

train vae_night
train vae_night max_train_steps=2100 lr_decay_steps=600 "hard_clips={size: small, background: the night}"
latents twelfth still 5000 100 --camera "zooms in" --motions circles=1.3 "stays still=1.4"
latents twelfth still 4000 101 --sizes 128x80 128x80 160x96 192x112 --moving-cameras 0.4 --motions circles=1.2 hits=1.5 "passes behind a wall=1.6" bounces=1.3 rises=1.3 \
  "leaves and returns=1.3" "stays still=1.6"
latents twelfth still 750 102 --camera "pans left" --motions "moves right=9"
latents twelfth still 750 103 --camera "pans right" --motions "moves left=9"
train transformer_sizes
model thirteenth vae-night transformer-sizes

train text_encoder_directions
encoder=text-encoder-directions
model directions vae-night transformer-sizes
latents directions directions 2000 110 --camera "zooms in" --motions circles=1.3 "stays still=1.4"
latents directions directions 6000 111 --sizes 128x80 128x80 128x80 160x96 192x112 --moving-cameras 0.35 --motions circles=1.2 hits=2.2 "leaves and returns=2.2" \
  "passes behind a wall=1.5" bounces=1.2 rises=1.2 "moves right=1.3" "moves left=1.3"
latents directions directions 1200 112 --camera "pans left" --motions "moves right=9" "moves left=3"
latents directions directions 1200 113 --camera "pans right" --motions "moves left=9" "moves right=3"
train transformer_directions
model fourteenth vae-night transformer-directions "$out"
echo "$out is made. How well it follows the words: $python -m training.toyworld evaluate --model $out --clips 300 --seed 1"
