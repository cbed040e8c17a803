# What a peer on the responder's socket may send that no web server would, to a responder with
# ASan and UBSan. After each: it serves on, to each its own answer, and holds no descriptor and
# no thread for it.

use strict;
use warnings;
use lib 't/lib';
use PostgreSQL::Test::Utils;
use RegPilot::FastCGI;
use RegPilot::Sanitizer;
use RegPilot::Test;
use Test::More;
use Time::HiRes qw(sleep time);

my $sanitizer = RegPilot::Sanitizer->new('address,undefined');
my $site = RegPilot::Test->new($sanitizer->options);
my $responder = $site->responder_pid;
my ($key_id, $key) = $site->create_key;
my ($hostile_id, $hostile) = $site->create_key;
$site->add_upstream('plain', $site->start_upstream);
$site->add_routes([ 'long-stream', 'plain', 'long-stream' ]);
my $json = JSON::PP->new->utf8;
my $marks = 0;

sub get { return { REQUEST_METHOD => 'GET', REQUEST_URI => $_[0], @_[ 1 .. $#_ ] } }
sub verify { return get('/api/auth/verify', HTTP_X_API_KEY => $_[0]) }

sub chat
{
	my ($body, %param) = @_;
	return {
		REQUEST_METHOD => 'POST',
		REQUEST_URI => '/v1/chat/completions',
		CONTENT_TYPE => 'application/json',
		CONTENT_LENGTH => length $body,
		HTTP_X_API_KEY => $hostile,
		%param
	};
}
sub message { return $json->encode({ messages => [ { role => 'user', content => $_[0] } ] }) }

sub ask
{
	my $connection = RegPilot::FastCGI->new($site);
	$connection->send($_) foreach @_;
	return $connection;
}

sub held { my @held = glob "/proc/$responder/$_[0]/*"; return scalar @held }

# Connections that it has, accepted or not; those of nginx are among them.
my $socket = $site->responder_socket;
sub connections { return scalar grep { / 03 +\d+ \Q$socket\E$/ } split /\n/, slurp_file('/proc/net/unix') }
my $expected;

# The responder is as it was, and answers.
sub unharmed
{
	my ($what) = @_;
	my $mark = 'mark ' . ++$marks;
	my $body = message($mark);
	my $answer = ask(request(1, chat($body, HTTP_X_API_KEY => $key), $body))->answer;
	my $text = $answer && $answer->{status} == 200 ? $answer->{json}{choices}[0]{message}{content} : '';
	my $whose = ask(request(1, verify($key)))->answer;
	my $left = eval { wait_until('no connection', sub { connections() <= $expected }, 30) };
	ok($text eq $mark && $whose && ($whose->{json}{key_id} // '') eq $key_id && $left, "$what: unharmed")
	  or diag("text \"$text\", connections: ", connections(), " of $expected");
	return;
}

# The connection is closed with no answer, but to management records.
sub is_dropped
{
	my ($connection, $what) = @_;
	my @records = $connection->rest;
	is(scalar(grep { $_->{type} == STDOUT_ || $_->{type} == END_REQUEST } @records), 0, "$what: no answer");
	return;
}

my $body = message('hello');
my $answer = ask(request(1, chat($body), $body))->answer;
is($answer->{json}{choices}[0]{message}{content}, 'hello', 'a request as it should be');
wait_until('both connections to the database',
	sub { $site->sql(q{SELECT count(*) FROM pg_stat_activity WHERE usename = 'regpilot_gateway'}) == 2 });
my ($threads, $descriptors) = (held('task'), held('fd'));
# libcurl takes two for each thread that has called an upstream
$descriptors += 2 * grep { (readlink $_ // '') =~ /eventpoll/ } glob "/proc/$responder/fd/*";
$expected = connections();

# --- many that say nothing, and one that never reads its answer; the end of that comes last

my @silent = map { RegPilot::FastCGI->new($site) } 1 .. 200;
$answer = ask(request(1, chat($body), $body))->answer;
is($answer->{json}{choices}[0]{message}{content}, 'hello', '200 silent connections: another one is served');
wait_until('all to be accepted', sub { held('fd') > 200 });
$_->close foreach @silent;
unharmed('200 silent connections');

my $big = $json->encode({ stream => JSON::PP::true, messages => [ { role => 'user', content => 'x ' x 100_000 } ] });
my $never_reads = ask(request(1, chat($big), $big));
my $never_reads_since = time;
$expected++;
unharmed('an answer that is never read');

# --- as web servers do it, but at its edges

$answer = ask(map { ($_) } split //, request(1, chat($body), $body))->answer;
is($answer->{json}{choices}[0]{message}{content}, 'hello', 'byte by byte');

$answer = ask(request(65535, chat($body), $body, padding => 255))->answer;
is($answer->{json}{choices}[0]{message}{content}, 'hello', 'padding wherever it can be');
is($answer->{id}, 65535, 'the largest request id');

my $connection = ask(request(1, verify($key), '', flags => KEEP) . request(2, verify($hostile), '', flags => KEEP) . request(1, get('/healthz')));
is($connection->answer->{json}{key_id}, $key_id, 'three requests at once: the first');
is($connection->answer->{json}{key_id}, $hostile_id, 'three requests at once: the second');
is($connection->answer->{json}{status}, 'ok', 'three requests at once: the third');
is($connection->receive, undef, 'three requests at once: the last was not to be kept');

is(ask(request(1, {}))->answer->{status}, 404, 'no parameters');
is(ask(begin(1), record(PARAMS, 1), record(STDIN_, 1))->answer->{status}, 404, 'parameters that end at once');
is(ask(request(1, params(verify($key)) . join '', map { pair("HTTP_X_$_", 'x') } 1 .. 10_000))->answer->{json}{key_id}, $key_id, '10,000 parameters');
is(ask(request(1, params(verify($key)) . join '', map { pair("HTTP_X_$_", 'x') } 1 .. 100_000))->answer->{json}{code}, 'HEADERS_TOO_LARGE', '100,000 parameters');
is(ask(request(1, { %{ verify($key) }, HTTP_X_LONG => 'x' x 300_000 }))->answer->{status}, 431, 'a parameter of 300 kB');
is(ask(request(1, join '', map { pair($$_[0], $$_[1]) } [ REQUEST_METHOD => 'GET' ], [ REQUEST_URI => '/api/auth/verify' ],
	[ HTTP_X_API_KEY => $key ], [ HTTP_X_API_KEY => $hostile ]))->answer->{json}{key_id}, $key_id, 'a parameter twice: the first counts');
unharmed('the edges');

# --- bytes that do not belong there

is(ask(request(1, verify("$key\0")))->answer->{body}, $body{missing}, 'NUL behind a key');
is(ask(request(1, verify("$key\0$hostile")))->answer->{body}, $body{missing}, 'NUL in a key');
is(ask(request(1, verify("$key\xff")))->answer->{body}, $body{invalid}, 'a key that is not ASCII');
is(ask(request(1, verify("$key\r\nX-API-Key: $hostile")))->answer->{body}, $body{invalid}, 'a key with line ends');
is(ask(request(1, verify('x' x 100_000)))->answer->{body}, $body{invalid}, 'a key of 100 kB');
is(ask(request(1, { %{ verify($key) }, "\0" => "\0", "\xff\xfe" => join('', map { chr } 0 .. 255), '' => '' }))->answer->{json}{key_id},
	$key_id, 'binary names and values');
is(ask(request(1, get("/healthz\0")))->answer->{status}, 404, 'NUL in an address');
is(ask(request(1, get("/healthz%00\r\n")))->answer->{status}, 404, 'line ends in an address');
is(ask(request(1, { REQUEST_METHOD => "GET\0", REQUEST_URI => '/healthz' }))->answer->{status}, 405, 'NUL in a method');
unharmed('bytes that do not belong there');

# --- CONTENT_LENGTH

foreach my $case (
	[ length($body) + 1 => 400 ],
	[ '99999999' => 413 ],
	[ '9' x 40 => 413 ],
	[ '-5' => 200 ],
	[ '0' => 200 ],
	[ '' => 200 ],
	[ 'many' => 200 ],
	[ '1e9' => 200 ])
{
	my ($length, $status) = @$case;
	my $answer = ask(request(1, chat($body, CONTENT_LENGTH => $length), $body))->answer;
	is($answer->{status}, $status, "CONTENT_LENGTH \"$length\": $status");
	is($answer->{json}{choices}[0]{message}{content}, 'hello', "CONTENT_LENGTH \"$length\": the body") if $status == 200;
}
unharmed('CONTENT_LENGTH');

# --- cut off

my $whole = request(1, chat($body), $body);
foreach my $length (0 .. length($whole) - 1)
{
	my $connection = ask(substr $whole, 0, $length);
	if ($length % 2)
	{
		$connection->close;
		next;
	}
	$connection->end;
	my @records = $connection->rest;
	@records == 0 or fail("cut off after $length bytes: an answer");
}
unharmed('cut off after each byte');

srand 7;
foreach (1 .. 200)
{
	my $connection = ask(request(1, chat($body), $body));
	sleep rand 0.01;
	$connection->close;
}
unharmed('gone at any moment');

# --- lies about lengths

foreach my $length (0x7fffffff, 0x7ffffffe, 0x40000000, 1000)
{
	foreach my $other (0x7fffffff, 0x7ffffffe, 0x7fffff00, 0x40000000, 1, 0)
	{
		my $lie = pack('NN', $length | 1 << 31, $other | 1 << 31) . 'HTTP_X_API_KEY';
		is_dropped(ask(request(1, params(verify($hostile)) . $lie)), "a name of $length bytes, a value of $other");
	}
}
foreach my $lie ("\x01", "\x80", "\x80\0\0", "\x01\x80\0\0", "\x05\x05HTTP", pack('CC', 14, 100) . 'HTTP_X_API_KEY' . 'x' x 99)
{
	is_dropped(ask(request(1, params(verify($hostile)) . $lie)), 'parameters that end with ' . unpack 'H*', substr $lie, 0, 8);
}
is_dropped(do { my $c = ask(begin(1), record(PARAMS, 1, 'x', 0, 65535)); $c->end; $c }, 'a record that claims 65,535 bytes');
is_dropped(ask(record(BEGIN_REQUEST, 1, "\0\1\0")), 'a beginning of 3 bytes');
is_dropped(ask(record(BEGIN_REQUEST, 1, "\0\1" . "\0" x 1000)), 'a beginning of 1,002 bytes');
unharmed('lies about lengths');

# --- other than it is done

foreach my $version (0, 2, 255)
{
	my $record = request(1, verify($hostile));
	is_dropped(ask(pack('C', $version) . substr $record, 1), "version $version at the start");
	is_dropped(ask(begin(1), pack('C', $version) . substr record(PARAMS, 1, 'x'), 1), "version $version in the midst");
}
is_dropped(ask("GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"), 'HTTP');
is_dropped(ask("\x16\x03\x01\x02\0\x01" . "\0" x 500), 'TLS');
is_dropped(ask(join '', map { chr int rand 256 } 1 .. 5000), 'noise');
is_dropped(ask(begin(1), begin(1)), 'begun twice');
is_dropped(ask(begin(1), record($_, 1, 'x')), "a record of type $_ instead of parameters") foreach STDIN_, STDOUT_, DATA, 77;
is_dropped(ask(begin(1), record(PARAMS, 1, params(chat($body))), record(PARAMS, 1), record(STDIN_, 1, '{'), record($_, 1, 'x')),
	"a record of type $_ in the body")
  foreach PARAMS, STDOUT_, DATA, 77;
unharmed('other than it is done');

# --- interleaved

my $other = message('not mine');
$connection = ask(
	begin(1, RESPONDER, KEEP),
	record(PARAMS, 1, params(chat($body))),
	begin(2, RESPONDER, KEEP),
	record(PARAMS, 2, params(chat($other, HTTP_X_API_KEY => $key))),
	record(PARAMS, 1),
	record(PARAMS, 2),
	record(STDIN_, 2, $other),
	record(STDIN_, 1, $body),
	record(STDIN_, 2),
	record(ABORT_REQUEST, 2),
	record(STDIN_, 1),
	request(3, verify($key)));
$answer = $connection->answer;
is_deeply([ @$answer{qw(id ended)} ], [ 2, CANT_MPX_CONN ], 'a request within another is refused');
$answer = $connection->answer;
is_deeply([ @$answer{qw(id status ended)} ], [ 1, 200, REQUEST_COMPLETE ], 'and the other is answered');
is($answer->{json}{choices}[0]{message}{content}, 'hello', 'with what belongs to it');
is($connection->answer->{json}{key_id}, $key_id, 'and the next one is served');
is_dropped(do { my $c = ask(begin(1), record(PARAMS, 2, params(verify($key))), record(PARAMS, 2), record(STDIN_, 2)); $c->end; $c },
	'the records of another request');
unharmed('interleaved');

# --- aborted

$connection = ask(begin(1, RESPONDER, KEEP), record(PARAMS, 1, params(verify($hostile))), record(ABORT_REQUEST, 1), request(2, verify($key)));
$answer = $connection->answer;
is_deeply([ @$answer{qw(id body ended)} ], [ 1, '', REQUEST_COMPLETE ], 'aborted in its parameters');
is($connection->answer->{json}{key_id}, $key_id, 'aborted in its parameters: the next one is served');

$connection = ask(begin(1, RESPONDER, KEEP), record(PARAMS, 1, params(chat($body))), record(PARAMS, 1), record(STDIN_, 1, '{"messages":'), record(ABORT_REQUEST, 1));
$answer = $connection->answer;
is_deeply([ @$answer{qw(id ended)} ], [ 1, REQUEST_COMPLETE ], 'aborted in its body');
isnt($answer->{status}, 200, 'aborted in its body: is not taken for a whole one');
is($connection->receive, undef, 'aborted in its body: the connection is closed');

my $stream = $json->encode({ stream => JSON::PP::true, model => 'long-stream', messages => [ { role => 'user', content => 'x' } ] });
$connection = ask(request(1, chat($stream), $stream, flags => KEEP));
like($connection->receive->{content}, qr/^Status: 200/, 'a stream begins');
my $start = time;
$connection->send(record(ABORT_REQUEST, 1));
$answer = $connection->answer;
is_deeply([ @$answer{qw(id ended)} ], [ 1, REQUEST_COMPLETE ], 'aborted in its answer: it ends');
cmp_ok(time - $start, '<', 3, 'aborted in its answer: at once');
wait_until('the upstream to be left', sub { grep { $_->{event} eq 'client gone' } json_file($site->upstream_requests) });
$connection->send(request(2, verify($key)));
is($connection->answer->{json}{key_id}, $key_id, 'aborted in its answer: the next one is served');

is(ask(record(ABORT_REQUEST, 1), request(1, verify($key), '', flags => KEEP), record(ABORT_REQUEST, 1))->answer->{json}{key_id},
	$key_id, 'there was nothing to abort');
unharmed('aborted');

# --- management records

sub limits
{
	my ($content) = @_;
	my %value;
	while ($content ne '')
	{
		my ($name, $value) = unpack 'CC', $content;
		my @pair = unpack "x2 a$name a$value", $content;
		$value{ $pair[0] } = $pair[1];
		substr $content, 0, 2 + $name + $value, '';
	}
	return \%value;
}
my @limits = qw(FCGI_MAX_CONNS FCGI_MAX_REQS FCGI_MPXS_CONNS);
foreach my $times (1, 50)
{
	my $connection = ask(record(GET_VALUES, 0, join('', map { pair($_, '') } (@limits, 'OTHER') x $times), 5));
	my $record = $connection->receive;
	is($record->{type}, GET_VALUES_RESULT, "limits asked for $times times: an answer");
	my $limits = limits($record->{content});
	is_deeply([ sort keys %$limits ], \@limits, 'those that we know');
	is($limits->{FCGI_MPXS_CONNS}, 0, 'we do not multiplex');
	cmp_ok($limits->{FCGI_MAX_CONNS}, '>', 200, 'connections');
	$connection->send(request(1, verify($key)));
	is($connection->answer->{json}{key_id}, $key_id, 'and then a request');
}
$connection = ask(record(GET_VALUES, 0, pair('FCGI_MAX_REQS', 'x') . "\xff" x 60_000));
is_deeply([ keys %{ limits($connection->receive->{content}) } ], ['FCGI_MAX_REQS'], 'limits asked for in noise');
$connection->close;

foreach my $type (0, BEGIN_REQUEST, ABORT_REQUEST, END_REQUEST, PARAMS, STDIN_, 12, 255)
{
	my $connection = ask(
		begin(1),
		record(PARAMS, 1, params(chat($body))),
		record($type, 0, pair(HTTP_AUTHORIZATION => "Bearer $key"), 3),
		record(PARAMS, 1),
		record(STDIN_, 1, substr $body, 0, 5),
		record($type, 0, 'x' x 70),
		record(STDIN_, 1, substr $body, 5),
		record(STDIN_, 1));
	my @unknown = map { $connection->receive } 1 .. 2;
	is_deeply([ map { ($_->{type}, unpack 'C', $_->{content}) } @unknown ], [ (UNKNOWN_TYPE, $type) x 2 ], "a management record of type $type is unknown");
	is($connection->answer->{json}{choices}[0]{message}{content}, 'hello', 'and what it holds goes nowhere');
}
unharmed('management records');

# --- roles

foreach my $role (0, FILTER, 4, 257, 65535)
{
	my $connection = ask(request(1, verify($hostile), 'x', role => $role, flags => KEEP), request(2, verify($key)));
	my $answer = $connection->answer;
	is_deeply([ @$answer{qw(id body ended)} ], [ 1, '', UNKNOWN_ROLE ], "role $role is unknown");
	is($connection->answer->{json}{key_id}, $key_id, "role $role: the next request is served");
}
$connection = ask(begin(1, AUTHORIZER, KEEP), record(PARAMS, 1, params(get('/auth', HTTP_X_API_KEY => $key))), record(PARAMS, 1));
is($connection->answer->{status}, 204, 'an authorizer has no body to wait for');
$connection->send(request(1, verify($key)));
is($connection->answer->{json}{key_id}, $key_id, 'an authorizer: the next request is served');
unharmed('roles');

# --- the end of it

$expected--;
ok(eval { wait_until('the connection to be given up', sub { $never_reads->is_closed }, 90) }, 'an answer that is never read is given up');
cmp_ok(time - $never_reads_since, '>', 20, 'but not at once');
$never_reads->close;
unharmed('all of that');
ok(eval { wait_until('connections to end', sub { held('task') <= $threads && held('fd') <= $descriptors }, 60) },
	'no thread and no descriptor is left of it')
  or diag('threads: ', held('task'), " of $threads, descriptors: ", held('fd'), " of $descriptors");

is(waitpid($responder, POSIX::WNOHANG()), 0, 'the responder is the process that it was');
is($site->end_responder('TERM'), 0, 'it ends in peace');
$sanitizer->finish;
foreach my $secret ($key, $hostile)
{
	is_deeply([ $site->logs_with(substr $secret, -20) ], [], 'no log has a key');
}

done_testing();
