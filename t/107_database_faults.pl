# The database breaks, again and again, under load: no answer is lost that could be given,
# none given that must not be, and all is well again soon, without a restart.

use strict;
use warnings;
use lib 't/lib';
use IO::Select;
use IO::Socket::UNIX;
use PostgreSQL::Test::Utils;
use RegPilot::Test;
use RegPilot::Traffic;
use Test::More;
use Time::HiRes qw(sleep time);

delete $ENV{PGAPPNAME};    # so the responder's connections tell what they are for
my $site = RegPilot::Test->new(conf => "log_statement = none\n");
my $node = $site->node;
$site->add_upstream('plain', $site->start_upstream);
$site->add_routes(map { [ $_, 'plain', $_ ] } qw(at-once long-stream));
my @models = (model => 'at-once', stream_model => 'long-stream');
my @seen = ('verify 200', 'chat 200', 'stream 200', 'long stream 200', 'revoked 401', 'unknown 401');

# The process of a connection of the responder's.
sub backend
{
	my ($name) = @_;
	return wait_until("the $name", sub {
		my ($status, $pid) = eval { $node->psql('regpilot',
			"SELECT pid FROM pg_stat_activity WHERE application_name = 'regpilot-fcgi $name' LIMIT 1") };
		return defined $status && $status == 0 && $pid;
	});
}

# --- the database ends, or a part of it

my $responder = $site->responder_pid;
my $traffic = RegPilot::Traffic->new($site, @models);
$traffic->start;
$traffic->wait_until_well;
my %fault = (
	'restarted' => sub { $node->restart },
	'restarted at once' => sub { $node->stop('immediate'); $node->start },
	(
		map {
			my $name = $_;
			"the $name terminated" => sub {
				my $pid = backend($name);
				$site->sql("SELECT pg_terminate_backend($pid, 10000)");
			},
			"the $name killed" => sub {
				my $pid = backend($name);
				kill 'KILL', $pid or die "kill: $!";
				wait_until('the server to be back', sub {
					my ($status, $now) = eval { $node->psql('regpilot', 'SELECT 1') };
					return !kill(0, $pid) && defined $status && $status == 0;
				});
			},
		} qw(authorizer recorder)));
foreach my $round (1 .. 2)
{
	foreach my $what (sort keys %fault)
	{
		$traffic->during("$what, round $round", $fault{$what});
	}
	$traffic->during('a key revoked', sub { $traffic->revoke }) if $round == 1;
}
$traffic->stop_and_check('the database', @seen, 'verify 503', 'doomed 200', 'doomed 401', 'streams that outlived it');
is(waitpid($responder, POSIX::WNOHANG()), 0, 'and the responder is the process that it was');

# --- it cannot be reached: a proxy before it is stopped, or gone

my $proxy_dir = "$site->{dir}/proxy";
my $name = '/.s.PGSQL.' . $node->port;
my $proxy;
mkdir $proxy_dir or die "$proxy_dir: $!";

# Passes on what comes, both ways, until either end closes.
sub run_proxy
{
	my ($listener) = @_;
	my $select = IO::Select->new($listener);
	my %other;
	while (1)
	{
		foreach my $socket ($select->can_read)
		{
			if ($socket == $listener)
			{
				my $client = $listener->accept;
				my $server = IO::Socket::UNIX->new(Peer => $node->host . $name);
				next unless $server;    # and the client's connection is closed
				@other{ $client, $server } = ($server, $client);
				$select->add($client, $server);
				next;
			}
			my $to = $other{$socket} // next;    # closed in this round
			my $bytes;
			next if sysread($socket, $bytes, 65536) && syswrite $to, $bytes;
			$select->remove($socket, $to);
			delete @other{ $socket, $to };
			close $_ foreach $socket, $to;
		}
	}
}

sub start_proxy
{
	unlink "$proxy_dir$name";
	my $listener = IO::Socket::UNIX->new(Local => "$proxy_dir$name", Listen => 10) or die "proxy: $!";
	$proxy = fork // die "fork: $!";
	if ($proxy == 0)
	{
		$SIG{PIPE} = 'IGNORE';
		eval { run_proxy($listener) };
		POSIX::_exit(0);
	}
	close $listener;
	return;
}
sub end_proxy { kill 'KILL', $proxy; waitpid $proxy, 0; undef $proxy; return }
END { if ($proxy) { local $?; end_proxy() } }    # before the site ends, whose pipes it has too

start_proxy();
is($site->end_responder('TERM'), 0, 'the responder ends');
$site->{env}{REGPILOT_DATABASE} = $site->responder_env->{REGPILOT_DATABASE} =~ s/host=\S+/host=$proxy_dir/r;
$site->start_responder;
$site->wait_for_verdicts;

$traffic = RegPilot::Traffic->new($site, @models);
$traffic->start;
$traffic->wait_until_well;
foreach my $round (1 .. 3)
{
	$traffic->during("out of reach, round $round", sub {
		kill 'STOP', $proxy;
		# some calls more than the one that is under way
		sleep 3;
		$traffic->revoke if $round == 1;
		sleep 0.5;
		kill 'CONT', $proxy;
	});
	$traffic->during("nobody listens, round $round", sub {
		end_proxy();
		sleep 0.5;
		start_proxy();
	});
}
$traffic->stop_and_check('out of reach', @seen, 'verify 503', 'doomed 200', 'doomed 401', 'streams that outlived it');

done_testing();
