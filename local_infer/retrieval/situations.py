"""Several words that together say what other words say: 提额 is more and limit, "forgot my password" asks for a new one.

COMPOUNDS, `word, word = meanings`: one word that says several. SITUATIONS, `result: parts | parts`: what says all the parts
says the result instead; tried from top to bottom, once each. A part or result is a concept of the lists, a plain word, `!`
(one negation) or `?kind` (of question); a part also `-name` (that is not there) or `.` (and nothing else is). NEAR: what may
stand for each other although a third thing may not: update and change, update and sync. IMPLIED: what may be left out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

# ruff: noqa: E501 (a situation is a line)

COMPOUNDS = """
转成, 转为, 转换成, 转换为, 转, 变成, 转到, convert to, convert into = convert >to
换成, 换到, 切换到, 切换成, 切换为, 改成, 改为 = change >to
借给, 借钱给 = lend >to
还书, return a book, return books = give_back book_
提额, 涨额度 = increase limit
运费, 邮费, 快递费, 配送费, 送货费, 邮资, 物流费, 外送费, postage, shipping cost, shipping fee, delivery fee, delivery charge, shipping charge, shipping price = ship fee
包邮, 免邮, 免运费, 免邮费 = free ship
机票, plane ticket, air ticket, airfare = flight ticket
火车票, 高铁票, 动车票 = train ticket
房价, room rate = room fee
停车费 = parking fee
话费 = phonebill
选座, 选座位, 选位子, 选位, 挑座位, seat selection = select seat
选课, 报课, course registration = select course
体检报告, 体检结果 = checkup result
谁出, 由谁出, 谁付, 由谁付, 谁承担, 由谁承担, 谁负责, 谁掏, 谁来付, 谁来出, 谁买单 = ?who pay
收多少, 收多少钱, 要多少钱, 需要多少钱, 得多少钱, 花多少钱 = ?howmuch fee
网速 = network speed
多重 = ?howmuch weight
差旅费 = businesstrip fee
多久内, 多久之内, 多长时间内, 几天内, 几天之内, 多少天内, 多少天之内, 多长时间之内, within how many days, how long do i have to, how long do i have, how long do we have to, how many days do i have to = ?howlong deadline
by when, until when, 最迟什么时候, 截止到什么时候 = ?when deadline
开票, 开张发票, 开发票 = invoice
try for free, try it for free, try it free, 免费试用, 免费体验, free trial = free trial
没到, 还没到, 没送到, 没来, 还没来, 一直没到, 还没送到 = ! arrive
把号, 这个号, 我的号 = account
学生价, student pricing, student price, student rate, student rates = student discount
退票 = ticket refund
退机票 = flight ticket refund
多少公斤, 多少斤 = ?howmuch weight
home repair, home repairs, come and fix, come fix, come and repair, come to fix = onsite repair
louder, make it louder = increase volume
quieter = decrease volume
see a doctor, see the doctor, doctor's appointment, doctor appointment, doctors appointment = doctor appointment
挂号, 预约挂号, 挂个号 = appointment doctor
挂号费 = appointment doctor fee
转人工, 接人工, 转接人工, 人工在哪, 联系人工 = contact staff
客服电话, 服务热线, 客服热线, hotline = staff phone_number
怎么办理, 如何办理, 咋办理, 怎样办理, 在哪办理 = ?how apply
怎么收费, 如何收费, 怎么算钱, 收费标准, 收费标准是什么, 怎么计费, 如何计费, 贵不贵, 贵吗, 多贵 = ?howmuch fee
怎么付款, 如何付款, 怎么支付, 如何支付 = ?how pay
开放到几点, 营业到几点, 开到几点, 开门到几点, 几点关, 几点关门, 几点打烊, 几点闭馆, how late are you open, until what time are you open = ?when location_close
几点开, 几点开门, 几点营业 = ?when location_open
怎么走, 怎么去, 怎么过去, 怎么到, 路线怎么走, how do i get to, how can i get to, how to get to, get there, directions to, directions, how do i get there = ?how route
多久到账, 多久能到账, 几天到账, 几天能到账 = ?howlong arrive
多久能到, 几天能到, 多久到货, 几天到货, 多久送到, 几天送到 = ?howlong arrive
多久发货, 几天发货 = ?howlong ship
取消订阅, 退订, unsubscribe = off subscription
自动续费, 自动续订, 自动续期, 自动扣费, 自动扣款, auto renew, auto renewal, automatic renewal, auto renewing, automatic payment, renew automatically = automatic renewal
改密码, 修改密码, 换密码 = change password
误删, 误删除 = deleted
换货 = exchange
查分, 查成绩 = view grade
考试时间 = exam time
请病假 = sick
续卡, 补卡, 补证 = reissue
"""

SITUATIONS = """
reset_password ?how: forget password | restore password | reset password | change forget password
loginfail: ! login | damaged login | notworking login
nocode: ! receive code_ | ! arrive code_ | ! send code_ | ! obtain code_
notworking: ! use -login -password | ! work | ! respon | ! response | ! react | ! function | ! run
offline_: ! network | ! connect network | ! connect wifi | ! wifi
quota_full: insufficient storage | storage full | disk full
notarrive: ! receive | ! arrive | ! receive goods
unlock ?how: ?remedy lock | ?state lock | lock unlock | lock unblock
unfreeze ?how: ?remedy freeze | ?state freeze | freeze unfreeze | freeze unblock
pay tuition: submit tuition
pay propertyfee: submit propertyfee
pay electricity: submit electricity
pay waterbill: submit waterbill
pay utilities: submit utilities
pay rent: submit rent
pay penalty: submit penalty
pay fee: submit fee
pay socialsecurity: submit socialsecurity
pay insurance: submit insurance
add card: bind card
add bank_card: bind bank_card
on two_factor: set two_factor | use two_factor
crash: crash keep
crash app: crash apply
install app: install apply
download app: download apply
update_ app: update_ apply | obtain latest_version | install latest_version | download latest_version | update_ latest_version | upgrade app | upgrade latest_version | change app
update_ system: upgrade system
reschedule flight: change flight | change flight ticket | reschedule flight ticket
printer notworking: ! print printer | damaged printer
visit ?when: visit hours | visit time
expense: submit expense | claim expense | claim fee
off lease: damaged lease | end lease | off lease early
browserhistory: browserhistory record | browser record
materials ?what: ?what carry -luggage -flight | ?what file -open | ?which file | carry materials | carry file
api_key: interface api_key | interface key
api_token: interface token | api_key token
sort_garbage: garbage sort_
process_ ?howlong: ?howlong apply | ?howlong obtain | ?howlong process_
process_ ?when: ?when obtain | ?when process_
?how: ?whatis method | ?what method | ?which method
pay return: return bear
pay: bear pay | ?who bear
network slow: network slow speed
connect !: connect notworking | connect error
login !: login notworking | login error
print !: print error
play !: play notworking | play error
download !: download notworking | download error
upload !: upload notworking | upload error
pay !: pay notworking | pay error
submit !: submit notworking | submit error
sync !: sync notworking | sync error
install !: install notworking | install error
update_ !: update_ notworking | update_ error
charging !: charging notworking
on !: on notworking
nocode: . ! code_ | . ! code_ sms
refund: money return
deposit_ refund: deposit_ return
tuition refund: tuition return
ticket refund: ticket return
reschedule flight: change flight date | change flight time | reschedule flight date | reschedule flight time
luggage limit: luggage weight limit | luggage limit carry weight
fasting ?must: ?can meal before | ?can 吃 before | ?must fast before | fasting before
offline_: connect offline_
increase volume: increase sound
decrease volume: decrease sound
off notification: off push | notarrive push set | notarrive push | notarrive notification set | notarrive notification | off receive notification
block: block people | block else_
set privacy: change privacy set | change privacy
set ?whereto: ?where set
find api_key ?whereto: ?where api_key | view api_key | obtain api_key | find api_key
increase membership_level: upgrade membership_level
redeem points: change points | ?what obtain points | ?whatis obtain points
keep data: shop data | storage data
latesubmit: late submit | homework late submit
publish grade: 出 grade | arrive grade | post grade | grade obtain
publish result: 出 result | arrive result
location_open ?when: ?when 开
borrow book_: ?howmany borrow
borrow book: ?howmany borrow book
wateroff: ! water | water off | water 停
off automatic renewal: off subscription renew | off subscription automatic renewal | off_subscription renew | off renew | off_subscription automatic renewal | off_subscription renewal | off auto renew
contact_staff: . contact support
staff hours: support hours
charging phone: fee phone | fee phone battery
failexam: ! pass_ exam | ! accept exam | ! exam pass_
creditlimit: credit limit | credit creditlimit
pay paypal: accept paypal | use paypal
process_ ?howlong: ?whatis process_ time | ?whatis method time | ?how method time
nosound: ! sound | damaged sound
close_account: remove account | off account | cancel account
register: create account -bank | add account -bind | location_open account -bank -account_open | sign account | apply account | on account
account_open: location_open bank account | set bank account | register bank account | add bank account | create bank account | account_open bank | on bank account
track ?how: view parcel | track parcel | track order_ | ?where parcel | ?where order_ | status order_ | status parcel | view ship | find parcel | ?whereto view parcel
retake: exam again | retake exam | again exam
addmember: invite colleague team | add colleague team | add colleague | invite colleague | invite team | add team member_ | invite member_ | add member_ | add people team | add team | invite people team | invite else_ team | add team user | invite user
?howmany: ?howmany max | ?howmany limit
limit ?whatis: ?howmuch max
luggage limit ?whatis: carry luggage limit | ?howmuch luggage weight carry | ?howmuch luggage weight | ?howmuch luggage carry
pet: carry pet | stay pet | enter pet
dog: carry dog | stay dog
cat: carry cat | stay cat
off_subscription: off subscription | off member | off plan_
restore: restore deleted
slow: slow speed
result: result 出
redeem points: use redeem points | use points change
stream: use stream
use coupon: apply coupon | redeem coupon | fillin coupon | ente coupon
pay credit: accept credit | use credit pay
payment_method ?what: . ?how pay | accept payment_method | use payment_method | support payment_method | use pay method | pay method
change english: change english interface_ | change english language
change language: change language other_
on dark: change dark | use dark | set dark
data_safe ?whether: safe privacy | safe data | leak privacy | leak data | leak_ data | leak_ privacy
compute overtime: compute overtime salary | compute overtime fee | compute overtime pay
increase: obtain increase | apply increase
?when checkin: ?when earliest checkin
?when checkout: ?when latest checkout
?when: ?when time | ?whatis time
?howlong: ?howlong time
?where: ?whatis address | ?where address
lost ?remedy: lost reissue | lost change | lost apply
wrongitem: wrong goods | wrong parcel | wrong order_ | receive wrong goods
damageditem: arrive damaged goods | receive damaged goods | damaged goods | arrive damaged parcel | arrive damaged order_ | damaged order_
salary ?when: . ?when payday | ?when salary pay | ?when salary 发 | ?when salary arrive | ?when salary send
salary: salary 发 | payday
invoice: invoice 开 | invoice issu | invoice apply | invoice 出
invoice company: invoice company title
vacation: vacation 休 | vacation 放 | vacation peryear | vacation tak | vacation obtain
leave_: leave_ apply | leave_ obtain | leave_ 请 | leave_ tak
contact_staff: contact staff | find staff | . contact | call staff | contact people
sick: sick apply | sick leave_
breakfast include: include breakfast room fee | include breakfast fee | breakfast include room
hacked: damaged hacked | account lost
onsite repair: onsite technician repair | technician onsite | onsite people repair
homework submit: homework submit send
printer: print 机
ac: ac set
"""

NEAR = """
receive/arrive download/obtain export/download create/add update_/change update_/sync update_/upgrade use/redeem
hours/location_open hours/location_close hours/worktime worktime/location_open
find/search search/view find/view exam/test_ comment/review
comment/feedback feedback/review hire/rent hire/lease lease/rent obtain/receive obtain/pickup borrow/loan
data/materials materials/proof appointment/book holiday/vacation keep/storage move/moving
quit/resign set/setup set/setting_ queue/wait penalty/breachfee chooseclass/enroll contact_staff/staff log/record
damaged/notworking freeze/hang limit/max degree/diploma leak/leak_
account_open/register submit/file again/retake paid/pay
wifi/network dog/pet cat/pet damaged/cracked different/other_
"""


IMPLIED = """
account: loginfail phone_number email password profile login avatar name pay_password two_factor notification reset_password
online: book appointment select enroll apply pay register checkin_flight transfer checkin seat course view
hotel: breakfast checkin checkout room extra_bed latecheckout towel pool shuttle
library: borrow renew librarycard
money: withdraw deposit transfer dispatch pay
airport: shuttle boarding boardingpass
flight: boarding boardingpass luggage seat
order_: ship track exchange dispatch
goods: return exchange refund damaged warranty wrongitem damageditem repair
pay: dispatch deadline
hit: ratelimit limit
request_: ratelimit
inside: dog cat pet
pet: dog cat
change: wrong expire
new: change
table: book appointment
on: checkin checkout boarding
record: chat
data: backup
deadline: pay submit apply register enroll
buy: discount insurance
arrive: refund transfer withdraw ship deposit
obtain: refund result discount ratelimit salary grade
process_: refund return visa passport idcard license driverlicense residence result salary grade
patient: visit
course: attend grade homework
access: network wifi dog cat pet
onsite: repair install
technician: repair install
room: checkin checkout
shop: location_open location_close hours
luggage: overweight checked carryon
student: scholarship tuition dorm semester studentid
employee: vacation salary overtime payslip
photo: avatar
bank: account_open card loan transfer
app: notification update_
"""
"""`thing: contexts`: beside one of the contexts that both say, the thing goes without saying."""


@cache
def implied() -> dict[str, frozenset[str]]:
    """thing -> contexts in which it may be left out."""
    lines = [line.partition(":") for line in IMPLIED.strip().splitlines()]
    return {"=" + thing: frozenset("=" + name for name in contexts.split()) for thing, _, contexts in lines}


@dataclass(slots=True)
class Said:
    """What a reader has collected: (content, gram text) in order, negations, kinds of question."""

    items: list[tuple[str, str]]
    negations: int
    questions: set[str]


@dataclass(frozen=True, slots=True)
class _Rule:
    parts: frozenset[str]
    kinds: frozenset[str]
    absent: frozenset[str]
    negated: bool
    alone: bool
    result: tuple[str, ...]
    asks: str
    negates: bool


def _name(part: str, known: frozenset[str]) -> str:
    return "=" + part if "=" + part in known else part


@cache
def _rules(known: frozenset[str]) -> tuple[_Rule, ...]:
    rules = []
    for line in SITUATIONS.strip().splitlines():
        head, _, alternatives = line.partition(":")
        result = tuple("=" + part for part in head.split() if part[0] not in "?!")
        asks = next((part[1:] for part in head.split() if part[0] == "?"), "")
        for alternative in alternatives.split("|"):
            parts = alternative.split()
            rules.append(
                _Rule(
                    frozenset(_name(p, known) for p in parts if p[0] not in "?!-."),
                    frozenset(p[1:] for p in parts if p[0] == "?"),
                    frozenset("=" + p[1:] for p in parts if p[0] == "-"),
                    "!" in parts,
                    "." in parts,
                    result,
                    asks,
                    "!" in head.split(),
                )
            )
    return tuple(rules)


def result_names() -> frozenset[str]:
    """The concepts that only situations make, as `=name`."""
    lines = SITUATIONS.strip().splitlines()
    return frozenset("=" + part for line in lines for part in line.partition(":")[0].split() if part[0] not in "?!")


def compounds() -> dict[str, tuple[str, ...]]:
    """word -> the names that it says."""
    found: dict[str, tuple[str, ...]] = {}
    for line in COMPOUNDS.strip().splitlines():
        words, _, names = line.partition("=")
        for word in words.split(","):
            found.setdefault(word.strip(), tuple(names.split()))
    return found


@cache
def near() -> frozenset[frozenset[str]]:
    """Pairs of concepts of which one may stand for the other."""
    return frozenset(frozenset("=" + name for name in pair.split("/")) for pair in NEAR.split())


def apply_situations(said: Said, known: frozenset[str], gram_of: Callable[[str], str]) -> None:
    """Replace in `said` what is said in several words; `known` are the concepts, `gram_of(=name)` the gram text of one."""
    contents = {content for content, _ in said.items}
    for rule in _rules(known):
        if not rule.parts <= contents or not rule.kinds <= said.questions or not rule.absent.isdisjoint(contents):
            continue
        if (rule.negated and not said.negations) or (rule.alone and contents != rule.parts):
            continue
        first = next((i for i, (content, _) in enumerate(said.items) if content in rule.parts), len(said.items))
        kept = [item for item in said.items if item[0] not in rule.parts and item[0] not in rule.result]
        place = len([item for item in said.items[:first] if item[0] not in rule.result])
        said.items[:] = [*kept[:place], *((name, gram_of(name)) for name in rule.result), *kept[place:]]
        contents = {content for content, _ in said.items}
        said.negations += rule.negates - rule.negated
        if rule.asks:
            said.questions.difference_update(rule.kinds | {"remedy", "state", "how", "whereto"})
            said.questions.add(rule.asks)
