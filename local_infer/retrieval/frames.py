"""What people put around what they ask of: each frame is written as the plainest one that asks the same.

A line is `plain frame: other frames`; X, and Z where there are two, is what is asked of. Only frames that the word lists
alone would misread stand here: "walk me through X" would else be of walking.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

# ruff: noqa: E501 (a frame with all that say the same is a line)

FRAMES = """
怎么X: 有没有办法X | 用什么方式X | X的正确方式是什么 | 通过什么方式可以X | 想X该怎么办 | 想要X,第一步做什么 | 求教X | 求问怎么X | 谁能教我X | 能教一下怎么X吗 | 不会X,求指导 | X需要哪几步 | X分几步 | 从头到尾怎么X | X有没有简单的办法 | X到底怎么个弄法 | 手把手教我X | X怎么办理 | X应当如何进行 | X应按什么程序进行
how do i X: where is the setting to X | where's the setting to X | where is the option to X | where do i go to X | what's the way to get X | what is the process to X | step by step guide to X | what steps do i take to X | can you walk me through X | walk me through X | what must i do in order to X | what is the correct way to X | tips on how to X | i don't know how to X | i can't figure out how to X | what's the trick to X | what method do i use to X | teach me to X
可以X吗: 是否能够X | 允不允许X | 支不支持X | 是否支持X | X行不行 | 让不让X | 准不准X | 有没有可能X | X是否可行 | 能X不 | 可以X不
can i X: might i be allowed to X | are we allowed to X | is it all right to X | is X supported | do you support X | are you allowed to X | is one permitted to X | does it let me X | will you let me X | do i have the option to X | do i get to X | is there an option to X | would i be able to X
在哪里X: X的渠道有哪些 | X有哪些渠道 | X有什么渠道 | 在哪个页面X | 在哪个菜单里X | X的入口在哪 | X的入口在哪里 | X的地点是哪里 | 点哪里可以X | X点哪里
X在哪里: X在什么位置 | 哪里有X | 哪里能找到X | X在哪里找
where can i X: where should i go to X | where does one X | which page do i X on | which menu do i use to X | on which screen do i X | at what place can i X | under which setting do i X | what place do i go to in order to X
where is X: in which menu is X | what page is X on | which tab is X under | can you point me to X
什么时候X: 多会儿能X | X的日期是哪天 | X安排在什么时候 | X的具体时间
X是什么时候: X在哪天
when is X: when is X scheduled | when does X take place | what is the date of X | any idea when X is | date and time of X
X要多久: X要花多久 | X得花多长时间 | X多久能办好 | X多久能弄完 | X几天能办好 | X要等多久 | X得等多长时间 | X一般要等几天 | X的时长是多少 | X的办理时限是多长 | X耗时多久 | X的周期是多长
how long X: how long does it take to X | how long will it take to X | how long would it take to X | how long does X take | how long is X going to take | how much time does it take to X | how much time will X take | how many days does it take to X | how many business days does X take | how many hours does X take | how many weeks will X take | what's the turnaround time for X | what is the processing time for X | processing time for X | time needed to X | time it takes to X | what's the wait for X | how long is the wait to X | how long do i have to wait to X | what is the usual timeframe for X | what's the timeline for X | what is the expected duration of X | how much longer will X take
X多少钱: X要多少钱 | X需要多少钱 | X得花多少钱 | X要花多少钱 | X的费用 | X费用多少 | X的价格 | X怎么收费 | X如何收费 | X收费吗,收多少 | X收多少钱 | X收费标准 | X的收费标准是什么 | X需要缴纳多少费用 | X价格多少 | X卖多少钱 | X的售价是多少 | X的单价
how much X: how much does it cost to X | how much is it to X | how much will it cost to X | how much would it cost me to X | how much do i have to pay to X | how much do i pay to X | how much do you charge to X | how much do you charge for X | what do you charge for X | what's the cost of X | what is the price of X | what's the fee for X | what does it cost to X | what does X cost | fee for X | cost of X | how much does X cost | price of X | what's the price for X | what are your rates for X | what's the going rate for X
几个X: 一共有多少X | 一共有几个X | 总共多少X | 总共有几个X | X的数量是多少 | X共计多少
how many X: how many X do i get | how many X are included | what is the number of X | number of X | number of X allowed | what number of X is permitted | total number of X | the count of X
为什么X: 怎么就X了 | 咋就X了 | X是因为什么 | 什么原因导致X | 是什么导致X | 干嘛X | 干嘛要X | X的理由是什么 | X出于什么原因 | 什么造成了X
why X: what's the cause of X | what led to X | what explains X | what's behind X
什么是X: 什么叫做X | 啥叫X | X是啥意思 | X的意思 | X的含义 | X的含义是什么 | X的定义 | X的定义是什么 | 如何理解X | X代表什么 | X是什么东西 | X是个什么东西 | 解释一下X | 请解释X | 能说说X是什么吗 | X是什么概念
what is the meaning of X: what exactly is X | what is X exactly | what does X mean | what does X stand for | define X | explain X | can you explain X | can you explain what X is | could you tell me what X is | tell me what X is | what does the term X refer to | what does X refer to | what do people mean by X | what counts as X | what on earth is X | i don't know what X is | never heard of X, what is it | how is X defined | what kind of thing is X
哪些X: 哪一种X | 有哪些X | 都有哪些X | 都有什么X | 有几种X,分别是什么 | X有哪些 | X都有啥 | X都包括哪些 | X的种类 | X的类型有哪些 | 支持什么X
which X: which X do you support | which X are supported | which X are available | what X do you offer | what X do you support | what X are available | what X are there | what kinds of X are there | what types of X do you have | what are the available X | what are my X options | the different types of X
谁可以X: 谁有资格X | 谁有权X | 谁有权限X | 哪些人有资格X | 哪类人可以X | 啥人能X | 何人可以X | X面向哪些人
who can X: who is allowed to X | who's allowed to X | who is permitted to X | who is entitled to X | who is eligible to X | who qualifies to X | who has the right to X | who has permission to X | what people can X | which people can X | what kind of person can X
X和Z有什么区别: X和Z有何区别 | X和Z有何不同 | X和Z的区别 | X和Z的区别是什么 | X和Z的不同 | X和Z的差别 | X和Z的差异 | X和Z的差异是什么 | X跟Z有啥两样 | X跟Z一样吗 | X与Z是一回事吗 | X和Z是不是一回事 | X和Z是同一个东西吗 | X与Z有何差别 | X与Z的对比 | X和Z对比 | X对比Z | X和Z怎么区分 | 怎么区分X和Z | 如何区分X与Z | X和Z差在哪 | X和Z区别在哪 | X和Z不同在哪里 | X相比Z有什么不同
difference between X and Z: what is the difference between X and Z | what's the difference between X and Z | what are the differences between X and Z | what's different between X and Z | how are X and Z different | how do X and Z differ | how is X different from Z | how is X different to Z | how does X differ from Z | in what way is X different from Z | in what ways do X and Z differ | what distinguishes X from Z | what sets X apart from Z | what separates X from Z | X vs Z | X versus Z | X or Z, what's the difference | compare X and Z | comparison of X and Z | X compared to Z | how does X compare to Z | how does X compare with Z | is X the same as Z | are X and Z the same thing | is there any difference between X and Z | is X different from Z | what makes X different from Z | how do i tell X from Z | what does X have that Z doesn't
X需要什么条件: X需要什么 | X的条件 | X的条件是什么 | X要满足什么条件 | X需要满足哪些条件 | X需要符合什么条件 | 符合什么条件可以X | 什么条件才能X | 满足什么条件才能X | X的要求 | X的要求是什么 | X需要准备什么 | X要准备什么 | X要准备哪些东西 | X需具备哪些条件 | X的前提是什么 | X有没有门槛
what are the requirements for X: what do i need in order to X | what is needed to X | what's needed to X | what's required to X | what is required for X | what are the requirements to X | requirements for X | requirements to X | what conditions must i meet to X | what criteria do i need to meet to X | what are the prerequisites for X | prerequisites for X | what qualifications do i need to X | what should i prepare to X | what do i have to have to X | what does it take to be able to X | do i need anything to X
X的进度: 我的X现在什么状态 | 我的X是什么状态 | 我的X怎么样了 | 我的X咋样了 | 我的X处理得怎么样了 | 查询X进度 | 查一下X的状态 | 如何得知X的进展
status of X: what is the status of my X | what's the status of my X | what's happening with my X | what's going on with my pending X | how is my X coming along | how far along is my X | any update on my X | any news on my X | is there any news about my X | can i get an update on my X | has my X been processed | did my X go through | is my X still pending | check the status of my X | at what stage is my X
X会怎么样: X会如何 | X之后会怎么样 | X之后会怎样 | X后会发生什么 | X会发生什么 | X会带来什么影响 | X会造成什么结果 | X会导致什么 | X的结果是什么 | X会出现什么情况 | X会有什么结果 | 要是X会咋样 | 假如X会如何 | X后会有什么变化
what happens if X: what happens once i X | what happens upon X | what are the consequences if i X | what's the consequence of X | what is the effect of X | what effect does X have | what impact does X have | what's the impact of X | will anything happen if i X | what results from X | what is the result of X | suppose i X, what then | say i X, then what | what follows if i X | what changes when i X | what changes after X | what are the implications of X | what occurs if i X
"""

_CLAUSE = re.compile(r"[^,，。.;；!！?？]+")
_EDGE = " 的了呢啊呀请问"


@dataclass(frozen=True, slots=True)
class _Frame:
    """`before` X `middle` Z `after`; without Z, `middle` is empty. `plain` has X and Z to be filled in."""

    before: str
    middle: str
    after: str
    plain: str

    @property
    def weight(self) -> int:
        return len(self.before) + len(self.middle) + len(self.after)


@cache
def _frames() -> dict[str, list[_Frame]]:
    """By the character they begin with, `^` before it, or, when that is X, by the one they end with; longest first."""
    found = []
    for line in FRAMES.strip().splitlines():
        plain, _, others = line.partition(":")
        for other in others.split("|"):
            before, _, rest = other.strip().partition("X")
            middle, has_two, after = rest.partition("Z")
            found.append(_Frame(before, *((middle, after) if has_two else ("", rest)), plain.strip()))
    by_edge: dict[str, list[_Frame]] = {}
    for frame in sorted(found, key=lambda frame: -frame.weight):
        by_edge.setdefault(f"^{frame.before[0]}" if frame.before else frame.after[-1:], []).append(frame)
    return by_edge


def reframe(text: str) -> str:
    """`text` (lower case) in the plainest words around what it asks of; as it is when no frame fits. O(clauses * frames).

    The whole question is tried, then each clause, from the last to the first; only one is written anew.
    """
    clauses = [match.span() for match in _CLAUSE.finditer(text)]
    whole = [(clauses[0][0], clauses[-1][1])] if len(clauses) > 1 else []
    for start, end in [*whole, *reversed(clauses)]:
        said = text[start:end].strip()
        fitting = [frame for edge in (f"^{said[:1]}", said[-1:], "") for frame in _frames().get(edge, ())]
        for frame in sorted(fitting, key=lambda frame: -frame.weight):
            if (plain := _fill(frame, said)) is not None:
                return f"{text[:start]} {plain}{text[end:]}"
    return text


def _fill(frame: _Frame, said: str) -> str | None:
    if not (said.startswith(frame.before) and said.endswith(frame.after)) or len(said) <= frame.weight:
        return None
    inner = said[len(frame.before) : len(said) - len(frame.after)]
    if not frame.middle:
        return frame.plain.replace("X", inner.strip(_EDGE)) if inner.strip(_EDGE) else None
    one, _, other = inner.partition(frame.middle)
    if not one.strip() or not other.strip():
        return None
    return frame.plain.replace("X", one.strip()).replace("Z", other.strip())
