"""What a question is read as, and which differences veto an answer."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from local_infer.retrieval import antonyms
from local_infer.retrieval.lexicon import words
from local_infer.retrieval.situations import compounds, implied, near
from local_infer.retrieval.vetoes import find_veto
from local_infer.retrieval.wording import read_wording, stem


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("如何关闭自动续费", "自动续费怎么取消"),
        ("如何關閉自動續費？", "请问怎样关掉自动续费呢"),
        ("How do I turn off notifications?", "how can i switch notifications off"),
        ("Where can I track my package?", "How do I track my parcel?"),
        ("视频无法播放怎么办", "为什么视频播放不了"),
        ("3天内可以退货吗", "三天内能不能退货"),
        ("ＶＩＰ１会员多少钱", "vip1会员多少钱"),
        ("move files from A1 to B2", "move files to B2 from A1"),
        ("What is the price of it in March", "How much does it cost in March"),
        ("I can't log in", "Why am I unable to log in?"),
        ("信用卡怎么提额", "如何提高信用卡额度"),
        ("发票丢了怎么办", "发票丢失怎么处理"),
        ("忘记密码怎么办", "怎么找回密码"),
        ("打印机打印不了怎么办", "打印机没反应如何解决"),
        ("退款多久到账", "什么时候能收到退款"),
        ("结婚证怎么办", "如何申请结婚证"),
        ("Where is my order?", "How can I track my package?"),
        ("Are dogs allowed?", "Can I bring my dog?"),
        ("Do I need a visa?", "Is a visa required?"),
        ("What's the price of the ticket?", "How much does the ticket cost?"),
        ("I was billed twice", "Why was I charged twice?"),
        ("How long do refunds take?", "When will I get my money back?"),
        ("半年内可以退吗", "6个月之内能不能退"),
        ("within one week", "within 7 days"),
    ],
)
def test_no_veto_between_rewordings(one: str, other: str) -> None:
    assert find_veto(read_wording(one), read_wording(other)) is None
    assert find_veto(read_wording(other), read_wording(one)) is None


@pytest.mark.parametrize(
    ("one", "other", "why"),
    [
        ("如何关闭自动续费", "如何开启自动续费", "antonym"),
        ("How do I enable it?", "How do I turn it off?", "antonym"),
        ("可以退货吗", "不可以退货吗", "negation"),
        ("为什么收到短信", "为什么收不到短信", "one-sided"),
        ("Why is it charging?", "Why isn't it charging?", "negation"),
        ("七天内退货", "八天内退货", "number"),
        ("7天内退货", "7小时内退货", "number"),
        ("5MB够吗", "5 GB够吗", "number"),
        ("第一次登录", "第二次登录", "number"),
        ("转账5千元", "转账5万元", "number"),
        ("Python 3.1 怎么装", "Python 3.10 怎么装", "number"),
        ("costs $5", "costs €5", "number"),
        ("怎么装Python", "怎么装Java", "identifier"),
        ("order A-1029 status", "order A-1092 status", "identifier"),
        ("v2.1.0有什么", "v2.1.1有什么", "identifier"),
        ("“到账”是什么意思", "“入账”是什么意思", "identifier"),
        ("谁可以退款", "什么时候可以退款", "question word"),
        ("How much does it cost?", "How long does it cost?", "question word"),
        ("What is the fan?", "How much does the fan cost?", "question word"),
        ("怎么把PDF转成Word", "怎么把Word转成PDF", "order"),
        ("北京到上海的票", "上海到北京的票", "order"),
        ("from Paris to London", "from London to Paris", "order"),
        ("Does the buyer pay the seller?", "Does the seller pay the buyer?", "order"),
        ("怎么隐藏显示的文件", "怎么显示隐藏的文件", "order"),
        ("怎么退款", "付款之前怎么退款", "one-sided"),
        ("结婚证怎么办", "离婚证怎么办", "wording"),
        ("How do I renew my license?", "How do I renew my hunting license?", "wording"),
        ("谁可以申请它", "谁可以设置它", "wording"),
        ("我能看到别人的主页吗", "别人能看到我的主页吗", "order"),
        ("怎么看别人的主页", "别人怎么看我的主页", "order"),
        ("Can my manager see my salary?", "Can I see my manager's salary?", "order"),
        ("Can you call me?", "Can I call you?", "order"),
        ("What is my address?", "What is your address?", "order"),
        ("transfer money to savings", "transfer money from savings", "order"),
        ("需要带身份证吗", "可以带身份证吗", "question word"),
        ("怎么冻结银行卡", "银行卡被冻结了怎么办", "antonym"),
        ("How do I lock my account?", "My account is locked", "antonym"),
        ("When is the exam?", "How long is the exam?", "question word"),
        ("多久可以退货", "退货可以多久", "question word"),
        ("会自动续费吗", "怎么自动续费", "question word"),
        ("What is 2FA?", "Do you have 2FA?", "question word"),
        ("退款什么时候处理", "退款什么时候到账", "wording"),
        ("什么时候申请奖学金", "什么时候领奖学金", "wording"),
        ("Will it renew automatically?", "How does it renew automatically?", "question word"),
        ("Should I update the app?", "Can I update the app?", "question word"),
        ("How do I install C++?", "How do I install C?", "identifier"),
        ("如何停止服务", "如何停止", "wording"),
    ],
)
def test_what_vetoes(one: str, other: str, why: str) -> None:
    assert find_veto(read_wording(one), read_wording(other)) == why
    assert find_veto(read_wording(other), read_wording(one)) == why


def test_without_doubts_other_words_are_no_veto_but_all_else_is() -> None:
    one, other = read_wording("结婚证怎么办"), read_wording("离婚证怎么办")
    assert find_veto(one, other, doubts=False) is None
    assert find_veto(read_wording("关闭续费"), read_wording("开启续费"), doubts=False) == "antonym"


def test_numbers() -> None:
    assert read_wording("三十五岁 两万元 二零二四年").numbers == (("20000", "yuan"), ("2024", "year"), ("35", "age"))
    assert read_wording("1,000 dollars in 2 weeks").numbers == (("1000", "dollar"), ("14", "day"))
    assert read_wording("一下 一起 统一").numbers == ()


def test_nobody_can_type_a_concept() -> None:
    private = read_wording("关闭").gram_text
    assert read_wording(private).content == ()


def test_stems() -> None:
    assert len({stem(w) for w in ("change", "changes", "changed", "changing")}) == 1
    assert stem("pass") == "pass"
    assert stem("policies") == stem("policy")


@given(st.text(max_size=120))
def test_any_text_is_read_and_agrees_with_itself(text: str) -> None:
    wording = read_wording(text)
    assert find_veto(wording, wording) is None


def test_what_goes_together_is_listed() -> None:
    # A name that no list has would be a word that nobody says.
    known = words().known
    said = {part for parts in compounds().values() for part in parts if part[0] not in "?!>"}
    assert {name for name in said if f"={name}" not in known} == set()
    assert {name for pair in near() for name in pair} <= known
    assert {name for thing, contexts in implied().items() for name in (thing, *contexts)} <= known


def test_every_excluding_concept_is_listed() -> None:
    listed = {line.partition(":")[0] for line in antonyms.POLAR.strip().splitlines()}
    named = {name for group in antonyms.EXCLUDING.split() for name in group.split("/")}
    assert named <= listed
