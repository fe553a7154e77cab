use super::*;

const EMPTY: Asked<'_> = Asked {
    prompt: "p",
    question: "q",
};

fn description(rule: Rule, answers: &[&str]) -> RuleDescription {
    RuleDescription {
        unfinished: rule.usual_unfinished(),
        rule,
        right: 1.0,
        wrong: 0.0,
        malformed: -0.5,
        answers: vec![RightAnswers {
            prompt: "p".to_owned(),
            question: "q".to_owned(),
            answers: answers.iter().map(|text| (*text).to_owned()).collect(),
        }],
    }
}

fn exact(extract: Option<&str>, answers: &[&str]) -> RewardRule {
    let exact = Exact {
        extract: extract.map(str::to_owned),
        ..Exact::default()
    };
    RewardRule::new(description(Rule::Exact(exact), answers)).unwrap()
}

fn regex(pattern: &str, full_match: bool) -> Result<RewardRule, RuleError> {
    let pattern = pattern.to_owned();
    let rule = Rule::Regex(Pattern {
        pattern,
        full_match,
    });
    RewardRule::new(description(rule, &[]))
}

fn judged(rule: &RewardRule, text: &str) -> (Finding, f64, Option<String>) {
    let verdict = rule.judge(EMPTY, text, true).unwrap();
    (verdict.finding, verdict.reward, verdict.answer)
}

#[test]
fn the_last_match_is_the_answer() {
    let rule = exact(Some(r"answer is (\w+)"), &["4", "four"]);
    let some = |text: &str| Some(text.to_owned());
    for (text, expected) in [
        (
            "the answer is 3 no the answer is 4",
            (Finding::Right, 1.0, some("4")),
        ),
        ("the answer is four", (Finding::Right, 1.0, some("four"))),
        (
            "the answer is 4 no the answer is 3",
            (Finding::Wrong, 0.0, some("3")),
        ),
        ("4", (Finding::Malformed, -0.5, None)),
        ("", (Finding::Malformed, -0.5, None)),
    ] {
        assert_eq!(judged(&rule, text), expected, "{text}");
    }
    // Without a group it is the whole match, without an expression the whole text.
    assert_eq!(
        judged(&exact(Some(r"\d+"), &["12"]), "1, 12").0,
        Finding::Right
    );
    let whole = exact(None, &["so it is"]);
    assert_eq!(judged(&whole, "  so it\n is ").0, Finding::Right);
    assert_eq!(judged(&whole, "So it is").0, Finding::Wrong);
    assert_eq!(judged(&whole, " ").0, Finding::Malformed);
}

#[test]
fn answers_are_found_by_prompt_then_by_question() {
    let rule = exact(None, &["4"]);
    let judge = |prompt: &str, question: &str| rule.judge(Asked { prompt, question }, "4", true);
    assert_eq!(judge("p", "").unwrap().finding, Finding::Right);
    // A prompt that was cut.
    assert_eq!(judge("end of p", "q").unwrap().finding, Finding::Right);
    let error = judge("other", "other").unwrap_err();
    let prompt = "other".to_owned();
    assert!(matches!(error, RuleError::UnknownPrompt { prompt: found, .. } if found == prompt));
}

#[test]
fn numbers_are_compared_by_value() {
    for (text, expected) in [
        ("1,000.50", Some("1000.5")),
        ("1000.5", Some("1000.5")),
        ("007", Some("7")),
        ("+7.", Some("7")),
        (".5", Some("0.5")),
        ("-0.50", Some("-0.5")),
        ("-0.0", Some("0")),
        ("1234,567", None),
        ("1,23", None),
        (",123", None),
        ("1.2.3", None),
        ("", None),
        (".", None),
        ("1e3", None),
        ("seven", None),
    ] {
        assert_eq!(decimal(text).as_deref(), expected, "{text}");
    }
    let options = Exact {
        extract: Some(r"####\s*(.+)".to_owned()),
        ignore_case: false,
        numbers: true,
    };
    let rule = RewardRule::new(description(Rule::Exact(options), &["1000"])).unwrap();
    assert_eq!(judged(&rule, "so #### 1,000.0").0, Finding::Right);
    assert_eq!(judged(&rule, "so #### many").0, Finding::Malformed);
}

#[test]
fn capital_letters_can_be_ignored() {
    let options = Exact {
        ignore_case: true,
        ..Exact::default()
    };
    let rule = RewardRule::new(description(Rule::Exact(options), &["paris"])).unwrap();
    assert_eq!(judged(&rule, "Paris").0, Finding::Right);
}

#[test]
fn an_expression_matches_a_part_or_the_whole() {
    let part = regex("b+|c", false).unwrap();
    assert_eq!(
        judged(&part, "abbd"),
        (Finding::Right, 1.0, Some("bb".to_owned()))
    );
    assert_eq!(judged(&part, "ad"), (Finding::Wrong, 0.0, None));
    let whole = regex("b+|c", true).unwrap();
    assert_eq!(judged(&whole, "bb").0, Finding::Right);
    for text in ["cd", "abb", "bb\n"] {
        assert_eq!(judged(&whole, text).0, Finding::Wrong, "{text}");
    }
}

#[test]
fn what_is_no_expression_is_refused() {
    for (pattern, full_match) in [("(", false), ("a)|(?:b", true), ("[", true)] {
        let error = regex(pattern, full_match).unwrap_err();
        assert!(
            matches!(error, RuleError::NoPattern { key: "pattern", .. }),
            "{error}"
        );
    }
    let two = Exact {
        extract: Some("(a)(b)".to_owned()),
        ..Exact::default()
    };
    let error = Extractor::new(&two).unwrap_err();
    assert!(
        matches!(error, RuleError::Groups { groups: 2, .. }),
        "{error}"
    );
}

#[test]
fn an_expression_that_takes_too_long_is_an_error() {
    let rule = regex(r"^(a+)+\1$", false).unwrap();
    let text = format!("{}b", "a".repeat(64));
    let error = rule.judge(EMPTY, &text, true).unwrap_err();
    assert!(matches!(error, RuleError::GaveUp { .. }), "{error}");
}

#[test]
fn what_did_not_end_is_wrong_unless_the_rule_says_otherwise() {
    let mut rule = exact(None, &["4"]);
    let cut = |rule: &RewardRule| rule.judge(EMPTY, "4", false).unwrap().finding;
    assert_eq!(cut(&rule), Finding::Unfinished);
    assert_eq!(rule.judge(EMPTY, "4", false).unwrap().reward, 0.0);
    rule.description.unfinished = Unfinished::AsIs;
    assert_eq!(cut(&rule), Finding::Right);
    assert_eq!(cut(&regex("4", false).unwrap()), Finding::Right);
}

#[test]
fn a_derivation_is_judged_and_named_by_its_canonical_text() {
    let rule = Rule::Arithmetic(Arithmetic { greatest: 24 });
    let rule = RewardRule::new(description(rule, &[])).unwrap();
    let asked = Asked {
        prompt: "Question: numbers 2 3 6 target 18 Answer:",
        question: "",
    };
    let judge = |text: &str| {
        let verdict = rule.judge(asked, text, true).unwrap();
        (verdict.finding, verdict.answer)
    };
    let same = Some("6 * 3 = 18".to_owned());
    assert_eq!(judge("3 * 6 = 18"), (Finding::Right, same.clone()));
    assert_eq!(judge("6 * 3 = 18"), (Finding::Right, same));
    assert_eq!(judge("6 - 3 = 3").0, Finding::Wrong);
    let untrue = Some("3 + 2 = 6 ; 9 - 1 = 2".to_owned());
    assert_eq!(judge("2 + 3 = 6 ; 9 - 1 = 2"), (Finding::Wrong, untrue));
    assert_eq!(judge("6 - 3 = 3 ; so"), (Finding::Malformed, None));
    assert_eq!(judge("6"), (Finding::Malformed, None));
    let error = rule.judge(EMPTY, "6", true).unwrap_err().to_string();
    assert!(error.contains("\"p\" states no problem"), "{error}");
    // Half of two steps.
    let value = |text: &str| rule.prefix_value(asked, text).unwrap();
    assert_eq!(value("6 + 3 = 9 ; 9"), 0.5);
    assert_eq!(value("6 + 3 = 9"), 0.0);
    assert_eq!(value("6 + 3 = 8 ;"), 0.0);
    assert_eq!(value("6 + ;"), -0.5);
}

#[test]
fn a_rule_is_read_as_it_was_written() {
    let folder = tempfile::tempdir().unwrap();
    let rule = exact(Some("(x)"), &["x"]);
    rule.save(folder.path()).unwrap();
    let read = RewardRule::load(folder.path()).unwrap();
    assert_eq!(read.description, rule.description);
    fs_err::write(folder.path().join("rule.json"), "{}").unwrap();
    let error = RewardRule::load(folder.path()).unwrap_err().to_string();
    assert!(error.contains("rule.json: missing field"), "{error}");
}
