# Hundreds of streams at once: each client gets all of its own events, in order, while
# others are served; and what they took is given back, round after round.

use strict;
use warnings;
use lib 't/lib';
use IPC::Run ();
use PostgreSQL::Test::Utils;
use RegPilot::Test;
use Test::More;

my $streams = 300;
my $kept = 4;
my $site = RegPilot::Test->new(keepalive => $kept, env => { REGPILOT_THREADS => 3 });
my ($key_id, $key) = $site->create_key;
my $pid = $site->responder_pid;

# bench/upstream.c: the model says how many events come and how far apart.
my $port = PostgreSQL::Test::Cluster::get_free_port();
my $upstream = $site->spawn("$site->{dir}/upstream.log", {}, 't/build/upstream', $port);
END { kill 'KILL', $upstream if $upstream }
$site->add_upstream('many', "http://127.0.0.1:$port/v1");
$site->sql(q{UPDATE regpilot.route SET upstream = 'many', model = NULL WHERE alias = '*'});
$site->add_routes;

# Starts that many streams through nginx, of so many events that are ms apart; bench/streams.c
# tells what came of them, and what the responder used meanwhile.
sub start_streams
{
	my ($count, $events, $ms) = @_;
	my %run = (out => '', err => '');
	$run{client} = IPC::Run::start([ 't/build/streams', 'hold', $site->{port}, $key, $count, $events, $ms, $pid ],
		'<', \undef, '>', \$run{out}, '2>', \$run{err}, IPC::Run::timeout(120));
	return \%run;
}

sub finish_streams
{
	my ($run) = @_;
	$run->{client}->finish;
	diag($run->{err}) if $run->{err} ne '';
	return { map { split /=/ } split /\n/, $run->{out} };
}

sub threads
{
	return scalar(() = glob "/proc/$pid/task/*");
}

sub files
{
	return scalar(() = glob "/proc/$pid/fd/*");
}

# The first few streams, for what is made once and stays.
finish_streams(start_streams($kept, 2, 100));

# --- at once

my $run = start_streams($streams, 24, 250);
my %verified;
do
{
	$verified{ $site->get('/api/auth/verify', "X-API-Key: $key")->{status} }++;
} while ($run->{client}->pumpable && ($run->{client}->pump_nb || 1));
my $seen = finish_streams($run);
is($seen->{open}, $streams, "$streams streams are open at once");
is($seen->{whole}, $streams, 'each gets all its events and no others, in order, and [DONE]');
is_deeply([ @$seen{qw(failed lost)} ], [ 0, 0 ], 'none fails, and no event is lost');
cmp_ok($seen->{threads}, '<=', 8, 'by a few threads');
is_deeply([ keys %verified ], [200], 'others are served meanwhile');
cmp_ok($verified{200}, '>', 1, 'more than once');

# --- and again

my @rounds = map { finish_streams(start_streams($streams, 6, 500)) } 1 .. 4;
is_deeply([ map { [ @$_{qw(open whole)} ] } @rounds ], [ ([ $streams, $streams ]) x 4 ], 'four more rounds: all are whole');
SKIP:
{
	skip 'a sanitizer has memory of its own', 1 if $ENV{REGPILOT_TEST_RESPONDER};
	cmp_ok($rounds[-1]{memory}, '<', 1.2 * $rounds[0]{memory}, 'they take no more memory each time')
	  or diag(join ' ', map { $_->{memory} } @rounds);
}
cmp_ok($rounds[-1]{files}, '<=', 1.1 * $rounds[0]{files}, 'nor descriptors');

# --- what is left

# (Connections to the upstream are kept for others.)
eval { wait_until('connections to end', sub { files() < $streams + 60 }, 30) };
cmp_ok(threads(), '<=', 8, 'there are no more threads');
cmp_ok(files(), '<', $streams + 60, 'the descriptors are closed') or diag(join "\n", map { readlink } glob "/proc/$pid/fd/*");
is($site->overview($key_id, 'total_requests - failed_requests'), $kept + 5 * $streams + $verified{200},
	'all calls are counted');

done_testing();
