"""Concepts of banks, travel, hotels, health, school, work, home and offices, Chinese and English: words that say the same there.

A line is as in `antonyms.py`; a name may be used again to add words to it, and a thing with one name is listed, too, as in
`concepts_service.py`.
"""

from __future__ import annotations

# ruff: noqa: E501 (a concept is a line)

DAILY = """
bank: 银行 | bank
branch_: 网点 支行 分行 营业网点 营业厅 | bank branch, branch office
atm: 取款机 自动取款机 atm | atm, cash machine
transfer: 汇款 转钱 打钱 汇 | wire, wire transfer, money transfer, send money, bank transfer
withdraw: 取现 取钱 取款 提款 提钱 | take out money, take money out, withdrawal, get cash
deposit: 存钱 存款 充钱 充 充话费 | put money, load money, add money, add funds, top up, top-up
savings: 定期 定存 储蓄 | savings, fixed deposit, time deposit
interest: 利息 利率 年利率 | interest, interest rate, apr
exchangerate: 汇率 | exchange rate, currency rate, conversion rate
currency: 外币 外汇 货币 | currency, foreign currency
mortgage: 房贷 按揭 | mortgage, home loan
carloan: 车贷 | car loan, auto loan
loan: 贷 借贷 | loan
repay: 还钱 还贷款 还清 | pay back, repay, repaying, paying off, pay off, settle
early_repay: 提前还款 提前还贷 提前还清 | early repayment, repay early, pay off early, prepay, prepayment
overdue: 逾期 晚还 没按时 未按时 没按时还 | overdue, late payment, pay late, miss a payment, missed payment, past due
breachfee: 违约金 | penalty fee, termination fee
latefee: 滞纳金 | late fee, late charge
penalty: 罚款 罚金 | penalty, fine
creditscore: 征信 信用分 信用记录 征信报告 | credit score, credit report, credit rating, credit history
credit: 信用卡卡片 | credit card
creditlimit: 信用额度 | credit limit, credit line
reportloss: 挂失 | report lost, report my lost, report stolen, report as lost, report the loss, report loss
cardblock: 卡被锁 卡被冻结
insurance: 保险 | insurance, insured
claim: 理赔 | insurance claim, file a claim, make a claim, claims, claim on
fund: 基金 | fund, mutual fund
stock_: 股票 | stock, shares
account_open: 开户 开账户 开银行账户 | open an account, open account, open a bank account, open a new account, set up a bank account, opening an account, account opening
statement: 对账单 | statement
taxreturn: 个税 个人所得税 报税 纳税申报 | income tax, tax return
taxrefund: 退税 税款退还 | tax refund
taxdue: 补税 补缴税款 补缴税 | back taxes, back tax, tax due, taxes due
flight: 航班 飞机 班机 | flight, plane, airplane, fly
airport: 机场 | airport
airline: 航空公司 | airline
boardingpass: 登机牌 | boarding pass
boarding: 登机 | board, boarding, get on the plane
checkin_flight: 值机 办理值机 在线值机 网上值机 | online check in, web check in, check in online, check in for my flight, flight check in
seat: 座位 座 位子 | seat, seating
ticket: 票 门票 车票 机票 入场券 入场票 | ticket, admission, entry ticket
highspeed: 高铁 动车 | high speed train, bullet train
train: 火车 列车 | train, rail
coach: 大巴 班车 | coach, shuttle
bus: 公交 公交车 巴士 | bus
metro: 地铁 轨道交通 | subway, metro, underground, tube
taxi: 出租车 打车 的士 网约车 | taxi, cab, ride
route: 路线 交通路线 | route
station: 车站 站 站点 | station, stop
transit: 中转 转机 换乘 | transfer flight, layover, connecting flight, transit, connection flight
delayed: 延误 晚点 误点 迟到的 延迟 | delayed, delay, late arrival, running late
compensate: 赔偿 补偿 赔 赔付 赔钱 赔多少 | compensation, compensate, compensated
luggage: 行李 行李箱 箱子 托运行李 | luggage, baggage, suitcase, bag, bags
carryon: 随身行李 手提行李 登机箱 | carry on, hand luggage, cabin bag, hand baggage, carry-on, cabin baggage
checked: 托运 | check in luggage, checked bag, checked baggage, check a bag
carry: 带 携带 带上 带来 带进 自带 | bring, carry, take with me, bring along, take along, bring in, take in
overweight: 超重 | overweight, excess
reschedule: 改签 改时间 改期 改日期 改日子 改到 | reschedule, change the date, change date, rebook, move to another date, change the time, change the date of, move my, change time
appointment: 预约 | make an appointment, schedule an appointment, set up an appointment, get an appointment, book an appointment, appointment
book: 订位 定位子 预订 定 | book, reserve, make a reservation, schedule, make a booking, reservation, booking
table: 餐位 桌子 桌位 | table
visa: 签证 | visa
passport: 护照 | passport
idcard: 身份证 身份证件 | id card, identity card, identification, id, photo id, identification card
driverlicense: 驾照 驾驶证 驾驶执照 | driver's license, driving licence, driving license, driver license, drivers license
license: 执照 许可证 | license, licence, permit
businesslicense: 营业执照 | business license, business licence
birthcert: 出生证明 出生证 | birth certificate
residence: 居住证 暂住证 | residence permit
household: 户口 户籍 户口本 | household registration
marriagecert: 结婚证 结婚登记 | marriage certificate, marriage license
divorcecert: 离婚证 | divorce certificate
socialsecurity: 社保 社会保险 | social security, social insurance
medicare: 医保 医疗保险 | medical insurance, health insurance
pension: 养老金 退休金 养老保险 | pension, retirement benefit
housingfund: 公积金 住房公积金 | housing fund, provident fund
socialcard: 社保卡 | social security card
proof: 证明 证明材料 凭证 | proof, certificate of
materials: 证件 材料 证件材料 手续 资料文件 申请材料 | documents, paperwork, papers, materials
hotel: 酒店 宾馆 旅馆 旅店 饭店 民宿 | hotel, motel, inn, hostel
room: 房间 客房 房 | room
checkin: 办理入住 入住手续 住进 住店 | check in, check-in, checking in, checkin
checkout: 退房 离店 | check out, check-out, checkout, checking out, leave the room
latecheckout: 延迟退房 晚点退房 晚退房 推迟退房 | late checkout, late check out, check out late, check out later
breakfast: 早餐 早饭 | breakfast
meal: 吃东西 进食 吃早饭 饭 餐 用餐 吃饭 餐食 | meal, food, eat, dine
canteen: 食堂 | cafeteria, canteen, dining hall
restaurant: 餐厅 餐馆 | restaurant
menu: 菜单 | menu
vegetarian: 素食 素菜 素 | vegetarian, meatless
vegan: 纯素 | vegan
allergy: 过敏 | allergy, allergic, allergen
parking: 停车场 停车位 车位 停车 泊车 | parking, park, parking lot, car park, parking space, parking spot, parking place
pool: 游泳池 泳池 | swimming pool, pool
gym: 健身房 | gym, fitness center, fitness centre, fitness room
elevator: 电梯 | elevator, lift
shuttle: 接送 接机 接送服务 接送机 | airport shuttle, pickup service, airport transfer, airport pickup, shuttle service
towel: 毛巾 | towel
extra_bed: 加张床 加一张床 多加一张床 多一张床 加床 | extra bed, additional bed
smoke: 吸烟 抽烟 | smoke, smoking
seedoctor: 看病 就诊 就医 看医生 看诊 |
doctor: 医生 大夫 医师 | doctor, physician, gp
clinic: 诊所 | clinic
hospital: 医院 | hospital
department: 科室 | department
emergency: 急诊 紧急情况 急救 紧急 | emergency, urgent, er
medicine: 药 药品 药物 吃药 服药 用药 | medicine, medication, drug, pill, tablet
prescription: 处方 处方药 | prescription
vaccine: 疫苗 打疫苗 预防针 接种 | vaccine, vaccination, shot, jab, vaccinated, immunization
checkup: 体检 健康检查 身体检查 | medical checkup, health check, physical exam, medical exam, physical examination, check up, medical examination, checkup, physical
fasting: 空腹 禁食 不吃东西 | fast, fasting, empty stomach
result: 报告 结果 报告结果 检查结果 化验结果 检验结果 检验报告 化验单 检查报告 报告单 | result, test result, report, lab result, results, test results, lab results
surgery: 手术 开刀 | surgery, operation
ward: 住院 病房 | hospitalized, admitted, inpatient, hospital stay
visit: 探视 探望 看望 | visit, visiting
blood: 血 抽血 验血 | blood, blood test
fever: 发烧 | fever
dentist: 牙医 看牙 牙科 | dentist, dental
pharmacy: 药店 药房 | pharmacy, drugstore, chemist
medicalrecord: 病历 | medical record, medical history
school: 学校 校园 院校 | school, campus, university, college
teacher: 老师 教师 教授 | teacher, instructor, professor, lecturer, tutor
student: 学生 | student, pupil
studentid: 学生证 | student card, student id
campuscard: 校园卡 一卡通 饭卡 | campus card
library: 图书馆 | library
librarycard: 借书证 图书证 借阅证 | library card
book_: 书 图书 书籍 | book
borrow: 借书 外借 | check out, borrow
dorm: 宿舍 寝室 | dorm, dormitory, residence hall, student housing
classroom: 教室 | classroom
semester: 学期 | semester, term
holiday: 假期 节假日 放假 节日 公众假期 法定节假日 | holiday, public holiday, holidays, break
summer_v: 暑假 | summer vacation, summer break
winter_v: 寒假 | winter vacation, winter break
course: 课 课程 | course, class, lecture, lesson
chooseclass: 报课 | enroll in a course, register for a class, register for classes, sign up for a class, register for courses, choose classes, select courses, course registration
dropclass: 退课 退选 | drop a class, drop a course, withdraw from a class
classschedule: 课表 课程表 | timetable, class schedule, course schedule
quiz: 测验 小测 | quiz
exam: 考试 考 | exam, examination
test_: 测试 | test
examtime: 考试时间
retake: 补考 重考 重新考试 再考 再考一次 | retake, take again, resit, repeat, redo
failexam: 挂科 不及格 没及格 考试没过 没考过 | fail a course, fail an exam, fail the exam, fail a class, fail the course, fail my exam
grade: 成绩 分数 得分 考试成绩 考分 | grade, score, mark, exam result, exam results
pass_: 及格 合格 | passing, pass
gpa: 绩点 | gpa
credit_: 学分 | course credit, credits
transcript: 成绩单 | transcript
degree: 学位 学历 | degree, diploma
graduate: 毕业 | graduate, graduation
diploma: 毕业证 毕业证书 | diploma, graduation certificate
thesis: 论文 毕业论文 | thesis, dissertation
tuition: 学费 | tuition, tuition fee, school fees
grant: 助学金 | grant, bursary, financial aid
scholarship: 奖学金 | scholarship
scholarship_: 助学贷款 | student loan
enroll: 入学 报名 报考 参加 | enroll, enrol, sign up, register, join, participate, take part, enrollment, admission
quit_school: 退学 | drop out
suspend_school: 休学 | leave of absence from school
changemajor: 转专业 换专业 | change my major, switch majors, change major
absence: 缺勤 旷课 缺席 缺课 旷工 | absent, absence, miss class, miss a class, skip class, missed class
late: 迟到 | late, tardy, arrive late
latesubmit: 晚交 迟交 晚交 补交 逾期提交 | late submission, submit late, hand in late, turn in late, late homework
deduct: 扣分 | lose points, deduct, points off, penalized, marks off
homework: 作业 功课 课后作业 | homework, assignment, coursework
course_mat: 课件 讲义 教材 课本 | lecture notes, textbook, course material, slides, handout
accompany: 陪护 陪同 陪 家属陪同 | accompany, companion
patient: 病人 患者 | patient
carryover: 累积 结转 留到明年 留到下一年 顺延 累计 | carry over, roll over, accumulate, rolled over, carried over
clockin: 打卡 考勤 | clock in, check in at work, clocking in
salary: 工资 薪资 薪水 月薪 薪酬 工钱 | salary, wage, pay, paycheck, wages, pay check
payday: 发工资 发薪 发薪日 工资发放 发薪水 | payday, get paid, pay day, paid each month, pay date, salary paid, wages paid, receive my salary, paychecks issued
payslip: 工资条 工资单 | payslip, pay slip, pay stub
bonus: 奖金 年终奖 | bonus
raise_: 加薪 涨工资 涨薪 调薪 | pay raise, pay rise, salary increase, raise my salary
overtime: 加班 加班费 加班工资 加班补贴 | overtime, overtime pay, work overtime, extra hours, working late
vacation: 年假 带薪年假 带薪假 年休假 休年假 带薪休假 年假天数 | vacation, annual leave, paid leave, paid time off, pto, vacation day, vacation days, holiday entitlement, paid vacation, paid holiday
leave_: 请假 休假 请个假 请假条 假 | a day off, take a day off, days off, time off, request leave, apply for leave, take leave, my leave, on leave, leave request, leave, leave of absence, day off, take off work, days off, take time off, ask for leave
sick: 病假 请病假 | sick leave, sick day, call in sick, calling in sick, sick days
maternity: 产假 | maternity leave, parental leave
marriage_leave: 婚假 | marriage leave, wedding leave
remotework: 居家办公 远程办公 在家办公 在家工作 远程工作 在家上班 | work from home, remote work, work remotely, working from home, telecommute, working remotely, home office
resign: 离职 辞职 辞工 不干了 | resign, quit, quit my job, leave the company, resignation, hand in my notice, leave my job
probation: 试用期 | probation, probationary period
contract: 合同 协议 劳动合同 | contract, agreement
expense: 报销 报账 | expense report, expenses, reimbursed, claim expenses, get reimbursed, expense claim
businesstrip: 出差 | business trip, business travel
meeting: 会议 开会 | meeting
meetingroom: 会议室 | meeting room, conference room
colleague: 同事 | colleague, coworker, co-worker
manager: 经理 领导 上司 主管 | manager, boss, supervisor
hr: 人事 人力资源 | hr, human resources
badge: 工牌 门禁卡 工卡 员工卡 门卡 | badge, access card, employee card, key card, employee badge
employee: 员工 职工 | employee, staff member
worktime: 工作时间 上班时间 | working hours, work hours, office hours
hours: 营业时间 开放时间 开门时间 办公时间 服务时间 接待时间 | opening hours, business hours, hours of operation, operating hours, opening times, hours, opening time
location_open: 营业 开门 开着 开放 开业 | open, be open
location_close: 关门 打烊 休息 闭馆 停业 | close, closed, closing, shut
rent: 房租 租金 | rent
tenantdeposit: 租房押金
lease: 租约 租房合同 租赁合同 | lease, rental agreement, rental contract, tenancy
sublet: 转租 | sublet, sublease
property: 物业 | property management
propertyfee: 物业费 | property fee, management fee, maintenance fee
utilities: 水电费 | utilities, utility bill
electricity: 电费 | electricity, electricity bill, electric bill, power bill
waterbill: 水费 | water bill
water: 用水 水 | water
hotwater: 热水 | hot water
gas: 燃气 天然气 煤气 | gas
outage: 停电 断电 家里没电 家里没电了 | power outage, blackout, power cut, no power, power is out
wateroff: 停水 | water outage, no water, water cut
garbage: 垃圾 | garbage, trash, rubbish, waste
sort_garbage: 垃圾分类 | recycle, recycling, sort garbage
mailbox: 邮箱地址箱 | mailbox
key: 钥匙 | key
lock_: 门锁 | door lock
moving: 搬家 | move house, moving house, move out, relocate
cleaning_service: 保洁 家政 | housekeeping, cleaning service, cleaner
car: 车 汽车 车辆 小车 | car, vehicle, automobile
plate: 车牌 车牌号 | license plate, number plate, plate number
violation: 违章 交通违章 | traffic violation, traffic ticket, traffic fine
refuel: 加油 | refuel, gas up, fill up
inspection: 年检 年审 验车 | vehicle inspection, annual inspection
bicycle: 自行车 单车 | bicycle, bike
rentcar: 租车 | rent a car, car rental, rental car, hire a car, car hire
age_: 年龄 多大年纪 几岁 | age, how old, age limit
height: 身高 | height
infant: 婴儿 宝宝 | baby, infant, toddler
child: 儿童 小孩 孩子 小朋友 | child, children, kid
student_price: 学生票 | student ticket
senior: 老人 老年人 | senior, elderly, older people
disabled: 残疾人 无障碍 轮椅 | disabled, wheelchair, accessible, wheelchair accessible, disability
group: 团体 | group
tourist: 游客 | tourist
guide_: 导游 讲解 | tour guide, guided tour
museum: 博物馆 | museum
exhibition: 展览 | exhibition
activity: 活动 | event, activity
seatsfull: 满员 名额满 报满 名额满了 | fully booked, full
quota: 名额 | places, spots
waitlist: 候补 | waitlist, wait list, waiting list
queue: 排队 等位 等候 | queue, line
wait: 等 等待 | wait, waiting
process_: 审核 处理 审批 受理 处理完 办好 办下来 办完 批下来 | process, processing, review, get approved, approval, processed, approved, be ready, ready
status: 进度 状态 进展 到哪一步 | status, progress
weather: 天气 | weather
rain: 下雨 下雨天 雨天 | rain, raining
today_: 今天 今日 | today
perday: 每天 每日 一天 单日 当日 | daily, per day, a day, each day, every day, in a day, in one day, one day
perweek: 每周 一周 每星期 | weekly, per week, a week, each week, every week
permonth: 每月 每个月 一个月 按月 | monthly, per month, a month, each month, every month
peryear: 每年 一年 全年 年度 | yearly, annually, per year, a year, each year, every year, annual
again: 再次 重新 重复 再一次 | again, once more, one more time
mistake: 误 不小心 误操作 手滑 | accidentally, by accident, by mistake
immediately: 马上 立即 立刻 立马 即时 | immediately, right away, instantly, at once, straight away
manually: 手动 人工操作 | manual, manually, by hand
multiple: 多个 多台 几台 好几个 | multiple, several, more than one, many
other_: 别的 其他 其它 另一个 | other, another, different one
else_: 别人 他人 其他人 | other people, others, someone else, somebody else, anyone else
limit: 限额 上限 额度 限制 配额 封顶 | entitlement, limit, quota, allowance, cap, maximum amount, upper limit
requirement: 条件 要求 门槛 资格 标准 | requirement, condition, eligibility, criteria, eligible, qualify, qualification
reason: 理由 | reason
effect: 影响 后果 | effect, consequence, impact
difference: 区别 差别 不同 不一样 差异 分别 | difference, different, differ, distinction
meaning: 含义 意思 | meaning, mean
safe: 安全 安全吗 有保障 可靠 靠谱 | safe, secure, security, protected, secured, reliable
privacy: 隐私 个人隐私 隐私信息 | privacy
leak: 泄露 泄漏 外泄 透露 | leak, disclose, share my data, sell my data
data: 数据 资料 信息数据 | data, information stored
delete_data: 删除数据
keep: 保存 存放 储存 保留 存储 留存 存 | save, keep, stored, store, retain, hold, kept
overheat: 发热 发烫 烫 过热 很烫 | overheat, overheating, overheated, too hot, get hot, gets hot, so hot
hot: 太热 热 | hot, heat, warm
cold: 制冷 冷 凉 降温 冷风 凉风 冷气 | cold, cool, cooling
"""
