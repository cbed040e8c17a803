# Outcomes: what became of each request that was authorised is in the request log and
# in the counters, once, whatever becomes of the database and the responder meanwhile.

use strict;
use warnings;
use utf8;
use lib 't/lib';
use Cwd qw(getcwd);
use Encode qw(decode_utf8 encode_utf8);
use HTTP::Tiny;
use IO::Select;
use IO::Socket::UNIX;
use PostgreSQL::Test::Utils;
use RegPilot::Test;
use Test::More;
use Time::HiRes qw(sleep time);

delete $ENV{PGAPPNAME};    # so the responder's connections tell what they are for
my $site = RegPilot::Test->new(streaming => 1);
my $node = $site->node;
$site->add_upstream('plain', $site->start_upstream);
$site->sql(q{UPDATE regpilot.route SET model = NULL WHERE alias = '*'});    # any name is passed on
$site->add_routes(map { [ $_, 'plain', $_ ] } qw(ok slow hang silent-stream long-stream dies error-500 error-400));

# --- what is made of them

# One request that is soon over and fails, for it has no body: 400.
sub bad_request
{
	my ($key, $http) = @_;
	return ($http // HTTP::Tiny->new)->post($site->url . '/api/ai/chat',
		{ headers => { 'X-API-Key' => $key, 'Content-Type' => 'application/json' } })->{status};
}

# Rows in the log, and failures counted, of a key.
sub recorded
{
	my ($key_id) = @_;
	return $site->sql("SELECT count(*) FROM regpilot.request_log WHERE key_id = '$key_id'") . ' '
	  . $site->overview($key_id, 'failed_requests');
}

# So many requests, all of which failed, are in both, and no more come.
sub is_recorded
{
	my ($key_id, $count, $what) = @_;
	eval {
		wait_until('outcomes', sub { (recorded($key_id) =~ /^(\d+)/)[0] >= $count }, 20);
		wait_until('none to be left', sub { $site->get('/metrics')->{body} =~ /^regpilot_outcomes_queued 0$/m }, 20);
	};
	is(recorded($key_id), "$count $count", $what);
	return;
}

sub new_messages
{
	my ($since) = @_;
	return slurp_file($site->{responder_log}, $since);
}
sub message_mark { return -s $site->{responder_log} }

# --- what is in a row

my $object = JSON::PP::false;
my %request = (
	verify => sub { $site->get('/api/auth/verify', "X-API-Key: $_[0]") },
	auth => sub { $site->get('/auth', "X-API-Key: $_[0]") },
	echo => sub { $site->stream($_[0]) },
	invalid => sub { bad_request($_[0]) },
	slow => sub { $site->stream($_[0], model => 'slow') },
	dies => sub { $site->stream($_[0], model => 'dies') },
	'error-400' => sub { $site->stream($_[0], model => 'error-400', stream => $object) },
	'error-500' => sub { $site->stream($_[0], model => 'error-500') },
	# the client goes away after a second
	(
		map {
			my $model = $_;
			$model => sub {
				$site->curl('/api/ai/chat', '--max-time', 1, '--header', "X-API-Key: $_[0]",
					'--json', JSON::PP::encode_json(user_message(model => $model)));
			}
		} qw(hang silent-stream)));
my %key;    # name of request -> [ id, key ]
$key{$_} = [ $site->create_key ] foreach keys %request;
my @names = sort keys %request;
$site->in_parallel(scalar @names, sub { $request{ $names[ $_[0] ] }->($key{ $names[ $_[0] ] }[1]); return {} });

my $ids = join ', ', map { "'$key{$_}[0]'" } @names;
wait_until('the log', sub { $site->sql("SELECT count(*) FROM regpilot.request_log WHERE key_id IN ($ids)") >= @names });
$site->sql('SELECT regpilot.flush_usage()');
my %name_of = map { ($key{$_}[0] => $_) } @names;
my (%status, %failed, %first_byte, %latency);
foreach (split /\n/, $site->sql(<<~SQL))
	SELECT key_id, l.status, coalesce(model, '-'), failed_requests, coalesce(first_byte_ms, -1), latency_ms
	FROM regpilot.request_log l JOIN regpilot.key_overview USING (key_id) WHERE key_id IN ($ids)
	SQL
{
	my ($id, $status, $model, @numbers) = split /\|/;
	my $name = $name_of{$id};
	($status{$name}, $failed{$name}, $first_byte{$name}, $latency{$name}) = ("$status $model", @numbers);
}
my %expected = (
	verify => '200 -', auth => '204 -', echo => '200 echo', invalid => '400 -', slow => '200 slow', dies => '502 dies',
	'error-400' => '400 error-400', 'error-500' => '502 error-500', hang => '499 hang',
	'silent-stream' => '499 silent-stream');
is_deeply(\%status, \%expected, 'status and model of each');
is_deeply(\%failed, { map { ($_ => $expected{$_} =~ /^[45]/ ? 1 : 0) } @names }, 'those with 400 and above have failed');
is(join(' ', grep { $first_byte{$_} < 0 } @names), 'hang', 'all have a first byte but the one that had no answer');
is(join(' ', grep { $first_byte{$_} > $latency{$_} } @names), '', 'none after the end');
cmp_ok($first_byte{slow}, '>=', 1500, 'a slow upstream: its first byte comes late');
cmp_ok($latency{slow} - $first_byte{slow}, '>=', 1000, 'and long before its last');
cmp_ok($latency{'silent-stream'} - $first_byte{'silent-stream'}, '>=', 400, 'a stream that the client left: it had begun');

# whatever a model is called; what is there to be escaped, and what not
my @models = ('"', '\\', '{"a":NULL}', 'NULL', "it's", 'a,b', '', ' ', encode_utf8('модель 模型 🦜'), encode_utf8('é' x 200));
my ($models_id, $models_key) = $site->create_key;
is($site->chat($models_key, model => decode_utf8($_), stream => $object)->{status}, $_ eq '' ? 400 : 200, "a model called $_")
  foreach @models;
wait_until('the log', sub { $site->sql("SELECT count(*) FROM regpilot.request_log WHERE key_id = '$models_id'") >= @models });
is($site->sql("SELECT model FROM regpilot.request_log WHERE key_id = '$models_id' ORDER BY at, id"), join("\n", @models),
	'and so it is called in the log');

# --- one that the database refuses, among others

my ($key_id, $key) = $site->create_key;
$site->sql(q{ALTER TABLE regpilot.request_log ADD CONSTRAINT poison CHECK (model <> 'poison') NOT VALID});
my $mark = message_mark();
$site->in_parallel(4, sub {
	my ($client) = @_;
	$site->stream($key, model => $client == 2 && $_ == 5 ? 'poison' : 'fine', stream => $object) foreach 1 .. 10;
	return {};
});
wait_until('the log', sub { $site->sql("SELECT count(*) FROM regpilot.request_log WHERE key_id = '$key_id'") >= 39 });
wait_until('the loss', sub { new_messages($mark) =~ /lost/ });
is($site->sql("SELECT count(*), sum((model = 'fine')::int) FROM regpilot.request_log WHERE key_id = '$key_id'"), '39|39',
	'one of forty is refused: the others are recorded');
is(() = new_messages($mark) =~ /lost 1 outcomes: [^\n]*constraint \\?"poison/g, 1, 'and its loss is logged');
$site->sql('ALTER TABLE regpilot.request_log DROP CONSTRAINT poison');

# --- the recorder's backend is terminated again and again

($key_id, $key) = $site->create_key;
$mark = message_mark();
my $end = time + 2;
my $seen = $site->in_parallel(
	4,
	sub {
		my ($client) = @_;
		my $http = HTTP::Tiny->new;
		my %count;
		while (time < $end)
		{
			if ($client > 0) { $count{ bad_request($key, $http) }++; next }
			my ($killed) = $site->sql(q{SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = 'regpilot-fcgi recorder'});
			$count{killed} += $killed;
		}
		return \%count;
	});
cmp_ok($seen->{killed}, '>', 2, "the recorder's backend is terminated under load ($seen->{killed} times, $seen->{400} requests)");
is_recorded($key_id, $seen->{400}, 'each outcome is recorded once');
is_deeply([ grep { !/^(400|killed)$/ } keys %$seen ], [], 'and no request noticed');
unlike(new_messages($mark), qr/lost/, 'none was lost');

# --- the server restarts

foreach my $mode (qw(fast immediate))
{
	($key_id, $key) = $site->create_key;
	$mark = message_mark();
	my $end = time + 3;
	my $seen = $site->in_parallel(
		4,
		sub {
			my ($client) = @_;
			if ($client == 0)
			{
				# by hand: the node's state belongs to the parent
				sleep 0.5;
				system('pg_ctl', '--silent', '--pgdata', $node->data_dir, '--mode', $mode, '--log', $node->logfile, 'restart');
				return {};
			}
			my $http = HTTP::Tiny->new;
			my %count;
			$count{ bad_request($key, $http) }++ while time < $end;
			return \%count;
		});
	$node->_update_pid(1);
	my $note = "$seen->{400} requests";
	cmp_ok($seen->{503} // 0, '>', 0, "a restart ($mode) under load");
	if ($mode eq 'fast')
	{
		is_recorded($key_id, $seen->{400}, "each outcome is recorded once ($note)");
		unlike(new_messages($mark), qr/lost/, 'none was lost');
	}
	else
	{
		# the server may have lost what it had, of the last second; nothing counts twice
		is($site->end_responder('TERM'), 0, 'the responder ends');
		my ($rows, $failures) = split / /, recorded($key_id);
		cmp_ok($rows, '<=', $seen->{400}, "no outcome is logged twice ($note)");
		cmp_ok($failures, '<=', $seen->{400}, 'or counted twice');
		cmp_ok($rows, '>', 0, 'and not all are lost');
		$site->start_responder;
		$site->wait_for_verdicts;
	}
}

# --- nobody knows whether a COMMIT has been done

# Between the responder and the server, a proxy. The file "fault" says what becomes of the
# next COMMIT, while its client's connection is cut: it is "done", "undone", or "delayed"
# until the file is removed.
my $proxy_dir = "$site->{dir}/proxy";
my $fault = "$site->{dir}/fault";
mkdir $proxy_dir or die "$proxy_dir: $!";

sub pass_on
{
	my ($bytes, $to) = @_;
	print $to $bytes;
	return $to->flush;
}

# Has the server do the last thing that a client asked for.
sub finish
{
	my ($bytes, $server) = @_;
	pass_on($bytes, $server);
	sysread $server, $bytes, 65536;
	return close $server;
}

sub run_proxy
{
	my ($listener, $target) = @_;
	my %server_of;    # client -> its server
	my %client_of;    # server -> its client
	my @delayed;
	my $select = IO::Select->new($listener);
	while (1)
	{
		finish(@{ shift @delayed }) if @delayed && !-e $fault;
		foreach my $socket ($select->can_read(0.05))
		{
			if ($socket == $listener)
			{
				my $client = $listener->accept;
				my $server = IO::Socket::UNIX->new(Peer => $target) // die "$target: $!";
				$server_of{$client} = $server;
				$client_of{$server} = $client;
				$select->add($client, $server);
				next;
			}
			my $server = $server_of{$socket} // $socket;
			my $client = $client_of{$server} // next;    # cut in this round
			my $length = sysread $socket, my $bytes, 65536;
			my $faulty = $length && $socket == $client && $bytes =~ /COMMIT\0/ && -e $fault;
			if ($length && !$faulty)
			{
				pass_on($bytes, $socket == $client ? $server : $client);
				next;
			}
			$select->remove($client, $server);
			delete $server_of{$client};
			delete $client_of{$server};
			my $what = $faulty ? slurp_file($fault) : '';
			finish($bytes, $server) if $what eq 'done';
			push @delayed, [ $bytes, $server ] if $what eq 'delayed';
			close $server if $what eq 'undone' || !$faulty;
			close $client;
			unlink $fault if $what eq 'done' || $what eq 'undone';
		}
	}
}

my $name = '/.s.PGSQL.' . $node->port;
my $listener = IO::Socket::UNIX->new(Local => "$proxy_dir$name", Listen => 10) or die "proxy: $!";
my $proxy = fork // die "fork: $!";
if ($proxy == 0)
{
	eval { run_proxy($listener, $node->host . $name) };
	POSIX::_exit(0);
}
close $listener;
END { kill 'KILL', $proxy if $proxy }    # before the site ends, whose pipes it has too
my $direct = $site->responder_env->{REGPILOT_DATABASE};
is($site->end_responder('TERM'), 0, 'a responder behind a proxy');
$site->{env}{REGPILOT_DATABASE} = $direct =~ s/host=\S+/host=$proxy_dir/r;
$site->start_responder;
$site->wait_for_verdicts;

foreach my $what (qw(done undone delayed))
{
	($key_id, $key) = $site->create_key;
	$mark = message_mark();
	append_to_file($fault, $what);
	is(bad_request($key), 400, "a request; its COMMIT is $what, of which no one hears");
	if ($what eq 'delayed')
	{
		wait_until('a question', sub { new_messages($mark) =~ /has not ended yet/ });
		unlink $fault;
	}
	wait_until('the fault', sub { !-e $fault });
	is(bad_request($key), 400, 'and one more');
	is_recorded($key_id, 2, 'both are recorded once');
	unlike(new_messages($mark), qr/lost/, 'none was lost');
}

kill 'KILL', $proxy;
waitpid $proxy, 0;
undef $proxy;
is($site->end_responder('TERM'), 0, 'the responder ends, idle, without its database');
delete $site->{env}{REGPILOT_DATABASE};
$site->start_responder;
$site->wait_for_verdicts;

# --- under load the responder is told to end and the database goes away; streams go on

($key_id, $key) = $site->create_key;
$mark = message_mark();
$seen = $site->in_parallel(
	7,
	sub {
		my ($client) = @_;
		my %count;
		if ($client < 4) { $count{ $site->stream($key, model => 'long-stream')->{body} =~ /\[DONE\]/ ? 'whole' : 'cut' }++ }
		elsif ($client == 4)
		{
			sleep 1;
			kill 'TERM', $site->responder_pid;
			system('pg_ctl', '--silent', '--pgdata', $node->data_dir, '--mode', 'fast', 'stop');
		}
		else
		{
			my $http = HTTP::Tiny->new;
			my $status = 400;
			$count{ $status = bad_request($key, $http) }++ while $status == 400;
		}
		return \%count;
	});
is($seen->{whole}, 4, 'a responder told to end, and its database stopped: streams go on to their end');
is($seen->{503}, 2, "other requests, after $seen->{400}, do not");
system('pg_ctl', '--silent', '--pgdata', $node->data_dir, '--log', $node->logfile, 'start') == 0 or die 'no start';
$node->_update_pid(1);
is($site->end_responder('CONT'), 0, 'the responder ends when the database is there again');
is(recorded($key_id), $seen->{400} + 4 . " $seen->{400}", 'and has all outcomes');
unlike(new_messages($mark), qr/lost/, 'none was lost');

# --- killed, it loses what it has not sent

$site->start_responder;
$site->wait_for_verdicts;
($key_id, $key) = $site->create_key;
bad_request($key) foreach 1 .. 20;
is_recorded($key_id, 20, 'twenty requests are recorded');
my $http = HTTP::Tiny->new;
bad_request($key, $http) foreach 1 .. 10;
is($site->end_responder('KILL') & 127, 9, 'killed ten requests later');
my ($rows, $failures) = split / /, recorded($key_id);
is($failures, $rows, 'an outcome is in the log and counted, or neither');
ok($rows >= 20 && $rows <= 30, "$rows of thirty are recorded");
is($site->overview($key_id, 'total_requests'), 30, 'though all have been counted as requests');

# --- while nothing can be written, outcomes pile up as far as there is room

{
	no warnings 'redefine';
	local *RegPilot::Test::responder_binary = sub { getcwd() . '/t/build/small-queue/regpilot-fcgi' };
	$site->start_responder;
}
$site->wait_for_verdicts;
($key_id, $key) = $site->create_key;
$mark = message_mark();
$site->sql(q{ALTER ROLE regpilot_gateway SET lock_timeout = '500ms'});
$node->safe_psql('regpilot', 'SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = \'regpilot-fcgi recorder\'');
my $session = $node->background_psql('regpilot', on_error_stop => 1);
$session->query_safe('BEGIN; LOCK TABLE regpilot.request_log');
$http = HTTP::Tiny->new;
$seen = {};
$seen->{ bad_request($key, $http) }++ foreach 1 .. 200;
is_deeply($seen, { 400 => 200 }, 'the log is locked: requests are answered all the same');
wait_until('a failure', sub { new_messages($mark) =~ /cannot record outcomes: .*lock timeout/ });
$session->query_safe('COMMIT');
$session->quit;
is_recorded($key_id, 64, 'and as many recorded afterwards as there was room for');
my $lost = 0;
$lost += $_ foreach new_messages($mark) =~ /lost (\d+) outcomes: the queue was full/g;
is($lost, 136, 'the others have been lost, and that logged');
like($site->get('/metrics')->{body}, qr/^regpilot_outcomes_total\{result="lost"\} 136$/m, 'and counted');
is($site->overview($key_id, 'total_requests'), 200, 'though all have been counted as requests');
bad_request($key);
is_recorded($key_id, 65, 'the next one is recorded');
is($site->end_responder('TERM'), 0, 'the responder ends');

# --- on a standby

($key_id, $key) = $site->create_key;
$node->backup('base');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($node, 'base', has_streaming => 1);
$standby->start;
$site->{env}{REGPILOT_DATABASE} = $direct =~ s/host=\S+ port=\S+/'host=' . $standby->host . ' port=' . $standby->port/er;
$mark = message_mark();
$site->start_responder;
$site->wait_for_verdicts;
is(bad_request($key), 400, 'a request that a standby authorises') foreach 1 .. 3;
is($site->end_responder('TERM'), 0, 'the responder ends');
unlike(new_messages($mark), qr/lost|cannot/, 'and has nothing to complain of');
$standby->promote;
$site->{node} = $standby;
$site->wait_for_worker;
is($site->overview($key_id, 'total_requests, failed_requests'), '3|3', 'after a promotion its outcomes are counted');
is($site->sql("SELECT count(*) FROM regpilot.request_log WHERE key_id = '$key_id'"), 0, 'and not logged');

# --- a database that has not all characters

$site = RegPilot::Test->new(initdb => ['--encoding=LATIN1']);
$site->sql(q{UPDATE regpilot.route SET model = NULL WHERE alias = '*'});
($key_id, $key) = $site->create_key;
wait_until('the route', sub { $site->chat($key, model => 'known', stream => $object)->{headers}{'x-regpilot-model'} eq 'builtin/known' });
is($site->chat($key, model => "\x{6a21}-\x{e9}", stream => $object)->{status}, 200, 'a model that it cannot spell');
wait_until('the log', sub { $site->sql("SELECT count(*) FROM regpilot.request_log WHERE key_id = '$key_id' AND model NOT IN ('echo', 'known')") });
is($site->sql(q{SELECT model FROM regpilot.request_log ORDER BY at DESC, id DESC LIMIT 1}), '?-?', 'is logged as well as it can be');

done_testing();
