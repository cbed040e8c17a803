# The responder is killed, again and again, under load: while it is away nginx says so, and
# once it is back all is well.

use strict;
use warnings;
use lib 't/lib';
use IO::Socket::UNIX;
use RegPilot::Test;
use RegPilot::Traffic;
use Test::More;
use Time::HiRes qw(sleep);

my $site = RegPilot::Test->new;
$site->add_upstream('plain', $site->start_upstream);
$site->add_routes(map { [ $_, 'plain', $_ ] } qw(at-once ok));

foreach my $inherited (0, 1)
{
	my $what = $inherited ? 'an inherited socket' : 'a socket of its own';
	if ($inherited)
	{
		$site->end_responder('TERM');
		unlink $site->responder_socket;
		$site->{inherited} = IO::Socket::UNIX->new(Local => $site->responder_socket, Listen => 100) or die "listen: $!";
		$site->{env}{REGPILOT_LISTEN} = '';
		$site->start_responder;
		$site->wait_for_verdicts;
	}
	# whoever waits in the queue of an inherited socket is served in the end
	my $traffic = RegPilot::Traffic->new($site, model => 'at-once', stream_model => 'ok', cuts => 1,
		codes => [ qw(DATABASE_UNAVAILABLE GATEWAY_UNAVAILABLE) ]);
	$traffic->start;
	$traffic->wait_until_well;
	foreach my $round (1 .. 5)
	{
		$traffic->during("killed, $what, round $round", sub {
			$site->end_responder('KILL');
			sleep 0.3;
			$site->start_responder;
		});
	}
	$traffic->revoke;
	$traffic->wait_until_well;
	my $seen = $traffic->stop_and_check("killed, $what",
		'verify 200', 'chat 200', 'stream 200', 'long stream 200', 'revoked 401', 'unknown 401', 'cut');
	ok($inherited || $seen->{'verify 503'}, "killed, $what: some had to try again");
}

done_testing();
