//! Losses and gradients recorded from PyTorch.
//!
//! Python (`c`, `r`, `rc`, `rr`, `nc`, `nr` as in [`found`]; `b` = .3):
//! ```python
//! h = (c - r) - (rc - rr); m = (c - rc) / nc - (r - rr) / nr; mc, mr = c / nc, r / nr; ls = F.logsigmoid
//! odds = (mc - mr) - (torch.log1p(-mc.exp()) - torch.log1p(-mr.exp()))
//! [-ls(b * h), -.9 * ls(b * h) - .1 * ls(-b * h), -ls(b * (c - r)), (m - 1 / (2 * b)) ** 2,
//!  -ls(b * (c - r)) - .5 * mc, -mc - .4 * ls(odds), -ls(2. * (mc - mr) - .6),
//!  (1.2 * (1 - torch.sigmoid(b * (c - rc - .2))) + .8 * (1 - torch.sigmoid(b * (.2 - (r - rr))))) / 2]
//! ```
use candle_core::Device;

use super::super::gradient_check::{assert_gradients, assert_recorded, close};
use super::super::scalar;
use super::*;

const BETA: f64 = 0.3;

fn column(values: [f64; 3]) -> Tensor {
    Tensor::new(&values, &Device::Cpu).unwrap()
}

fn policy() -> [Tensor; 2] {
    [column([-4.0, -7.5, -3.2]), column([-5.0, -6.0, -9.0])]
}

fn found(inputs: &[Tensor], loss: PreferenceLoss) -> Preference {
    let reference = [column([-4.4, -7.0, -3.0]), column([-4.5, -6.6, -8.0])];
    let batch = PreferenceBatch {
        policy: PairLogProbs {
            chosen: &inputs[0],
            rejected: &inputs[1],
        },
        reference: loss.needs_reference().then_some(PairLogProbs {
            chosen: &reference[0],
            rejected: &reference[1],
        }),
        chosen_lengths: &[4, 6, 3],
        rejected_lengths: &[5, 4, 7],
        kl: 0.2,
        chosen_tokens: 13.0,
    };
    preference(&batch, loss, Normaliser::Own).unwrap()
}

fn dpo(label_smoothing: f64, reference_free: bool) -> PreferenceLoss {
    PreferenceLoss::Dpo {
        beta: BETA,
        label_smoothing,
        reference_free,
    }
}

fn recorded() -> Vec<(PreferenceLoss, f64, [f64; 3], [f64; 3])> {
    vec![
        (
            dpo(0.0, false),
            0.673_086_820_114_202_3,
            [
                -0.043_290_709_503_454_56,
                -0.058_175_937_684_183_616,
                -0.044_028_635_073_280_704,
            ],
            [
                0.043_290_709_503_454_56,
                0.058_175_937_684_183_616,
                0.044_028_635_073_280_704,
            ],
        ),
        (
            dpo(0.1, false),
            0.679_086_820_114_202_2,
            [
                -0.033_290_709_503_454_56,
                -0.048_175_937_684_183_62,
                -0.034_028_635_073_280_71,
            ],
            [
                0.033_290_709_503_454_56,
                0.048_175_937_684_183_62,
                0.034_028_635_073_280_71,
            ],
        ),
        (
            dpo(0.0, true),
            0.553_105_044_718_522_6,
            [
                -0.042_555_748_318_834_095,
                -0.061_063_923_394_922_184,
                -0.014_931_293_453_084_372,
            ],
            [
                0.042_555_748_318_834_095,
                0.061_063_923_394_922_184,
                0.014_931_293_453_084_372,
            ],
        ),
        (
            PreferenceLoss::Ipo { beta: BETA },
            2.763_575_207_860_922,
            [
                -0.244_444_444_444_444_4,
                -0.211_111_111_111_111_1,
                -0.353_439_153_439_153_44,
            ],
            [
                0.195_555_555_555_555_54,
                0.316_666_666_666_666_65,
                0.151_473_922_902_494_34,
            ],
        ),
        (
            PreferenceLoss::Cpo {
                beta: BETA,
                sft_weight: 0.5,
                likelihood: Likelihood::Pairs,
            },
            1.105_882_822_496_300_4,
            [
                -0.084_222_414_985_500_76,
                -0.088_841_701_172_699_96,
                -0.070_486_849_008_639_93,
            ],
            [
                0.042_555_748_318_834_095,
                0.061_063_923_394_922_184,
                0.014_931_293_453_084_372,
            ],
        ),
        (
            PreferenceLoss::Orpo { weight: 0.4 },
            1.342_855_838_659_854_4,
            [
                -0.109_699_611_781_155_43,
                -0.068_543_291_802_016_97,
                -0.139_663_681_039_615_9,
            ],
            [
                0.021_093_022_758_257_685,
                0.017_892_355_391_089_27,
                0.011_091_843_023_538_554,
            ],
        ),
        (
            PreferenceLoss::Simpo {
                beta: 2.0,
                margin: 0.6,
            },
            0.853_085_747_835_262_8,
            [
                -0.107_609_384_370_965_9,
                -0.058_331_020_830_993_334,
                -0.120_086_223_167_850_28,
            ],
            [
                0.086_087_507_496_772_71,
                0.087_496_531_246_49,
                0.051_465_524_214_792_98,
            ],
        ),
        (
            PreferenceLoss::Kto {
                beta: BETA,
                desirable_weight: 1.2,
                undesirable_weight: 0.8,
                reference_point: ReferencePoint::All,
            },
            0.498_604_053_028_108_2,
            [
                -0.014_986_508_095_870_934,
                -0.014_835_832_955_757_853,
                -0.014_946_129_336_111_003,
            ],
            [
                0.009_890_555_303_838_568,
                0.009_964_086_224_074_003,
                0.009_682_872_044_105_78,
            ],
        ),
    ]
}

#[test]
fn losses_and_gradients_match_pytorch() {
    for (loss, value, chosen, rejected) in recorded() {
        let inputs = policy();
        close(scalar(&found(&inputs, loss).loss).unwrap(), value, 1e-12);
        assert_recorded(&[&inputs[0], &inputs[1]], &[&chosen, &rejected], |inputs| {
            found(inputs, loss).loss
        });
        assert_gradients(&inputs, 1.0, |inputs| found(inputs, loss).loss);
    }
}

/// TRL's `CPOTrainer`: the margin's mean over pairs, plus `cpo_alpha` times the cross-entropy of all tokens of the
/// preferred completions.
#[test]
fn the_likelihood_of_cpo_is_a_mean_over_tokens() {
    let cpo = |likelihood, sft_weight| PreferenceLoss::Cpo {
        beta: BETA,
        sft_weight,
        likelihood,
    };
    let value = |loss| scalar(&found(&policy(), loss).loss).unwrap();
    let margin = value(cpo(Likelihood::Tokens, 0.0));
    let found_tokens = value(cpo(Likelihood::Tokens, 0.5)) - margin;
    close(found_tokens, 0.5 * (4.0 + 7.5 + 3.2) / 13.0, 1e-12);
    let found_pairs = value(cpo(Likelihood::Pairs, 0.5)) - margin;
    let of_pairs = (4.0 / 4.0 + 7.5 / 6.0 + 3.2 / 3.0) / 3.0;
    close(found_pairs, 0.5 * of_pairs, 1e-12);
    assert_gradients(&policy(), 1.0, |inputs| {
        found(inputs, cpo(Likelihood::Tokens, 0.5)).loss
    });
}

#[test]
fn diagnostics_are_those_of_the_pairs() {
    let result = found(&policy(), dpo(0.0, false));
    // Log-ratios 0.4, -0.5, -0.2 and -0.5, 0.6, -1.
    close(result.margin, (0.9 - 1.1 + 0.8) / 3.0, 1e-12);
    close(result.accuracy, 2.0 / 3.0, 1e-12);
    close(result.chosen_log_ratio.unwrap(), -0.1, 1e-12);
    close(result.rejected_log_ratio.unwrap(), -0.3, 1e-12);
    let free = found(&policy(), dpo(0.0, true));
    assert_eq!(free.chosen_log_ratio, None);
    assert_eq!(kto_baseline(&[-3.0, 1.0]), 0.0);
    assert_eq!(kto_baseline(&[3.0, 1.0]), 2.0);
}

#[test]
fn numbers_out_of_range_are_named() {
    assert_eq!(dpo(0.0, false).problem(), None);
    assert_eq!(dpo(0.5, false).problem().unwrap().0, "label_smoothing");
    let loss = PreferenceLoss::Ipo { beta: 0.0 };
    assert_eq!(loss.problem(), Some(("beta", "from 1e-6 to 1e6")));
}

#[test]
fn a_loss_without_its_reference_is_an_error() {
    let inputs = policy();
    let pairs = PairLogProbs {
        chosen: &inputs[0],
        rejected: &inputs[1],
    };
    let batch = PreferenceBatch {
        policy: pairs,
        reference: None,
        chosen_lengths: &[1, 1, 1],
        rejected_lengths: &[1, 1, 1],
        kl: 0.0,
        chosen_tokens: 3.0,
    };
    let error = preference(&batch, dpo(0.0, false), Normaliser::Own).unwrap_err();
    assert!(error.to_string().contains("reference"), "{error}");
    assert!(preference(&batch, dpo(0.0, true), Normaliser::Own).is_ok());
}
