# sessions.py PORT COUNT ROLE PASSWORD: signs in at the dashboard so often, says so, and then
# does what the pages of as many people do who watch a project: each asks for its figures
# every ten seconds. Ends, with a message, at the first answer that is not 200.
import http.client
import json
import sys
import time

port, count, role, password = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]


def call(method, path, body=None, cookie=''):
    connection = http.client.HTTPConnection('127.0.0.1', port, timeout=60)
    headers = {'X-RegPilot-Dashboard': '1', 'Content-Type': 'application/json', 'Cookie': cookie}
    connection.request(method, '/dashboard/api/' + path, json.dumps(body) if body else None, headers)
    answer = connection.getresponse()
    text = answer.read()
    connection.close()
    if answer.status != 200:
        sys.exit('%s %s: %d %s' % (method, path, answer.status, text))
    return answer, json.loads(text)


cookies = []
for _ in range(count):
    answer, _ = call('POST', 'session', {'role': role, 'password': password})
    cookies.append(answer.getheader('Set-Cookie').split(';')[0])
project = call('GET', 'projects', cookie=cookies[0])[1]['data'][0]['project_id']
print('ready', flush=True)
while True:
    for cookie in cookies:
        call('GET', 'projects/%s/analytics?period=day' % project, cookie=cookie)
        time.sleep(10 / count)
